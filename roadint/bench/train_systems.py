"""The systems of `roadint bench train`: one job through roadint, pyvene and the bare model."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from roadint.architecture.layers import find_layers, text_config
from roadint.bench.flops import needed_flops
from roadint.bench.halves import HALVES, block_strengths
from roadint.bench.machine import forget_peak, machine, peak_mb
from roadint.bench.pyvene_road import pyreft_loss, wrap_in_pyvene
from roadint.bench.shapes import model_and_tokenizer
from roadint.bench.timing import Stopwatch, seconds_of
from roadint.data.collate import Collator, Example, completion_nll, moved, tokenize
from roadint.data.prompts import pad
from roadint.data.sources import load_rows
from roadint.interventions.road import RoadIntervention
from roadint.model.road_model import RoadModel
from roadint.training.prefix.cache import PrefixCache
from roadint.training.sampler import MixedLengthSampler

BUNDLED = {"german": "bundled:german", "english": "bundled:english"}
_RATE, _GRADIENT_NORM = 3e-2, 1.0


@dataclass(frozen=True)
class TrainingJob:
    """A training job: RoAd1 at the last prompt token, by AdamW, in the recipe's order of rows.

    Attributes:
        model: Hub id, folder or short name.
        layer: From 0; the middle one by default.
        data: Sources of rows, by the half that they train.
        rows: The number of rows of a source; all by default.
        max_completion: Tokens at which completions are cut.
        batch_size: Rows of a step.
        micro_batch: Rows that roadint computes at once; pyreft's loop takes a step's at once. By
            default 4 on a CPU, whose caches they fill, and a step's on a GPU.
        epochs: The number of epochs of the whole job.
        dtype: The dtype of the model.
        seed: The seed of the order of rows.
        shape: A name in `roadint.bench.shapes.SHAPES`, in place of the model. Its rows are four
            steps of random tokens, completions of `max_completion`.
        prompt: Tokens of random prompts.
    """

    model: str
    layer: int | None = None
    data: Mapping[str, str] = field(default_factory=lambda: BUNDLED)
    rows: int | None = None
    max_completion: int = 64
    batch_size: int = 8
    micro_batch: int | None = None
    epochs: int = 5
    dtype: str = "auto"
    seed: int = 42
    shape: str | None = None
    prompt: int = 256


class TrainingSystem(ABC):
    """The base class of systems, which share weights, tokens, order of rows and optimizer.

    Args:
        job: The training job.
    """

    def __init__(self, job: TrainingJob) -> None:
        torch.manual_seed(job.seed)
        self.job = job
        self.model, self.tokenizer = model_and_tokenizer(job.model, job.shape, job.dtype)
        self.model.requires_grad_(False)
        self.device = next(self.model.parameters()).device
        self.layer = len(find_layers(self.model)[1]) // 2 if job.layer is None else job.layer
        self.width = int(text_config(self.model).hidden_size)
        self.collator = Collator(self.tokenizer)
        forget_peak(self.device)

    def prepare_job(self) -> dict[str, Any]:
        """Take the job's rows.

        Returns:
            {"seconds", "steps"}: the seconds of what only this system prepares, and the steps of an
            epoch.
        """
        job = self.job
        examples = [
            example
            for name, source in ({} if job.shape else job.data).items()
            for example in tokenize(
                load_rows(source, job.rows),
                self.tokenizer,
                name,
                template="alpaca",
                max_length=512,
                max_completion=job.max_completion,
                eos=True,
            )
        ]
        if job.shape:
            rows = 4 * job.batch_size
            examples = self._random(job.prompt, job.max_completion, rows, compositions=2)
        seconds = self._prepare(examples, job.batch_size)
        return {"seconds": seconds, "steps": len(self.batches)}

    def prepare_random(self, prompt: int, completion: int, rows: int, compositions: int) -> None:
        """Take rows of random tokens, all in one step.

        Args:
            prompt: Tokens of each prompt.
            completion: Tokens of each completion.
            rows: How many rows.
            compositions: Through how many different compositions they go.
        """
        self._prepare(self._random(prompt, completion, rows, compositions), rows)

    def step(self, number: int) -> tuple[float, float]:
        """Make one optimizer step.

        Args:
            number: The number of the batch; epochs repeat.

        Returns:
            The seconds, and the loss in nats a token.
        """
        rows = self._rows(number)
        with Stopwatch(self.device) as watch:
            loss = self._backward(rows)
            if self.optimizer:
                torch.nn.utils.clip_grad_norm_(self.parameters, _GRADIENT_NORM)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return watch.seconds, float(loss)

    def peak_mb(self) -> float:
        """The peak of memory so far, in MB."""
        return peak_mb(self.device)

    def machine(self) -> dict[str, Any]:
        """The description of the machine."""
        return machine(self.device, self.model.dtype)

    def flops(self, number: int) -> float:
        """The operations that a step needs at least."""
        return needed_flops(self.model, self.layer + 1, self._rows(number))

    @abstractmethod
    def _new_parameters(self) -> list[nn.Parameter]:
        """New parameters, at the identity."""

    @abstractmethod
    def _backward(self, rows: list[Example]) -> Float[Tensor, ""]:
        """Compute gradients of the mean loss over the rows' tokens; returns the loss."""

    def _before_first_step(self) -> None:  # noqa: B027  (most systems do nothing)
        """Compute what a system computes once."""

    def _prepare(self, examples: list[Example], batch_size: int) -> float:
        """Take examples; returns the seconds of what only this system prepares."""
        self.examples = examples
        order = list(MixedLengthSampler(examples, batch_size, self.job.seed))
        starts = range(0, len(order), batch_size)
        self.batches = [order[start : start + batch_size] for start in starts]
        self.parameters = self._new_parameters()
        self.optimizer = None
        if self.parameters:
            self.optimizer = torch.optim.AdamW(self.parameters, lr=_RATE, weight_decay=0.0)
        return seconds_of(self._before_first_step, self.device)

    def _random(self, prompt: int, completion: int, rows: int, compositions: int) -> list[Example]:
        draw = torch.Generator().manual_seed(self.job.seed)
        highest = int(text_config(self.model).vocab_size) - 10
        ids = torch.randint(10, highest, (rows, prompt + completion), generator=draw).tolist()
        # Every half gets half of the strengths, from 1 down.
        texts = [
            f"{1 - index / (2 * compositions):g}*{('german', 'english')[index % 2]}"
            for index in range(compositions)
        ]
        return [
            Example(row[:prompt], row[prompt:], texts[index % compositions])
            for index, row in enumerate(ids)
        ]

    def _rows(self, number: int) -> list[Example]:
        return [self.examples[index] for index in self.batches[number % len(self.batches)]]


class RoadWithoutReuse(TrainingSystem):
    """roadint without prefix reuse."""

    def _new_parameters(self) -> list[nn.Parameter]:
        self.road = RoadModel(self.model, RoadIntervention(layer=self.layer, subspaces=HALVES))
        return list(self.road.interventions.parameters())

    def _nll(self, rows: list[Example]) -> Float[Tensor, " tokens"]:
        """The tokens' losses in one micro-batch."""
        return completion_nll(self.road, moved(self.collator(rows), self.device))[0]

    def _backward(self, rows: list[Example]) -> Float[Tensor, ""]:
        tokens = sum(len(row.completion) for row in rows)
        total = torch.zeros((), device=self.device)
        at_once = self.job.micro_batch or (4 if self.device.type == "cpu" else len(rows))
        for start in range(0, len(rows), at_once):
            loss = self._nll(rows[start : start + at_once]).sum() / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total


class RoadWithReuse(RoadWithoutReuse):
    """roadint as it trains: the prefix is computed once."""

    def _before_first_step(self) -> None:
        folder = Path(tempfile.gettempdir())
        self.cache = PrefixCache.build(self.road, self.examples, self.collator, folder=folder)

    def _nll(self, rows: list[Example]) -> Float[Tensor, " tokens"]:
        return self.cache.nll(self.road, moved(self.cache(rows), self.device))[0]


class PyveneTraining(TrainingSystem):
    """A plain RoAd intervention in pyvene, in pyreft's training step."""

    def _new_parameters(self) -> list[nn.Parameter]:
        self.intervenable, intervention = wrap_in_pyvene(self.model, self.layer, self.width)
        return list(intervention.parameters())

    def _backward(self, rows: list[Example]) -> Float[Tensor, ""]:
        strengths = [block_strengths(row.composition, self.width) for row in rows]
        batch = labelled_batch(rows, self.collator.fill, self.device)
        loss = pyreft_loss(self.intervenable, rows, strengths, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class BareForward(TrainingSystem):
    """The untouched model: one forward pass and its loss, nothing trained."""

    def _new_parameters(self) -> list[nn.Parameter]:
        return []

    def _backward(self, rows: list[Example]) -> Float[Tensor, ""]:
        with torch.no_grad():
            batch = labelled_batch(rows, self.collator.fill, self.device)
            loss: Tensor = self.model(**batch).loss
        return loss


SYSTEMS: dict[str, Callable[[TrainingJob], TrainingSystem]] = {
    "roadint": RoadWithReuse,
    "roadint, no prefix reuse": RoadWithoutReuse,
    "pyvene": PyveneTraining,
    "bare model, forward only": BareForward,
}


def labelled_batch(
    examples: Sequence[Example], fill: int, device: torch.device
) -> dict[str, Tensor]:
    """Pad whole rows, with labels as a model's own loss takes them.

    Args:
        examples: The rows.
        fill: The id of the padding.
        device: The device of the batch.

    Returns:
        input_ids, attention_mask and labels, all [rows, longest].
    """
    tensors = {
        "input_ids": pad([[*e.prompt, *e.completion] for e in examples], fill, "right"),
        "attention_mask": pad([[1] * len(e) for e in examples], 0, "right"),
        "labels": pad([[-100] * len(e.prompt) + e.completion for e in examples], -100, "right"),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}
