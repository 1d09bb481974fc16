"""The systems that `roadint bench train` compares: one job, done by roadint, by pyvene and by the bare model."""

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roadint.architecture.layers import find_layers, text_config
from roadint.bench import rival
from roadint.bench.measure import forget_peak, machine, peak_mb, wait_for
from roadint.data.collate import Collator, Example, completion_nll, moved, tokenize
from roadint.data.sources import load_rows
from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.interventions.road import RoadIntervention
from roadint.model.pretrained import load
from roadint.model.road_model import RoadModel
from roadint.training.prefix.cache import PrefixCache
from roadint.training.sampler import MixedLengthSampler

HALVES = {"german": "[0, d/2)", "english": "[d/2, d)"}
BUNDLED = {"german": "bundled:german", "english": "bundled:english"}
RATE, GRADIENT_NORM = 3e-2, 1.0


@dataclass(frozen=True)
class Job:
    """What is trained: RoAd1 at the last prompt token, AdamW, the recipe's own order of rows."""

    model: str
    layer: int | None = None  # the middle one by default
    data: Mapping[str, str] = field(default_factory=lambda: BUNDLED)
    rows: int | None = None  # of each source
    max_completion: int = 64
    batch_size: int = 8
    micro_batch: int = 4  # roadint's; pyreft's loop takes a step's rows at once
    epochs: int = 5
    dtype: str = "auto"
    seed: int = 42


class _Training(ABC):
    """What all systems share: weights, tokens, order of rows, optimizer."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(job.seed)
        self.job = job
        self.model, self.tokenizer = load(job.model, dtype=job.dtype)
        self.model.requires_grad_(False)
        self.device = next(self.model.parameters()).device
        self.layer = len(find_layers(self.model)[1]) // 2 if job.layer is None else job.layer
        self.width = int(text_config(self.model).hidden_size)
        self.collator = Collator(self.tokenizer)
        forget_peak(self.device)

    def examples(self) -> list[Example]:
        """The job's rows."""
        return [
            example
            for name, source in self.job.data.items()
            for example in tokenize(
                load_rows(source, self.job.rows),
                self.tokenizer,
                name,
                template="alpaca",
                max_length=512,
                max_completion=self.job.max_completion,
                eos=True,
            )
        ]

    def synthetic(
        self, prompt: int, completion: int, rows: int, compositions: int
    ) -> list[Example]:
        """Rows of random tokens, each through one of `compositions` different compositions."""
        draw = torch.Generator().manual_seed(self.job.seed)
        ids = torch.randint(
            10,
            int(text_config(self.model).vocab_size) - 10,
            (rows, prompt + completion),
            generator=draw,
        ).tolist()
        # Half as many strengths of each half, from 1 down.
        names = [
            f"{1 - place / (2 * compositions):g}*{'german' if place % 2 == 0 else 'english'}"
            for place in range(compositions)
        ]
        return [
            Example(row[:prompt], row[prompt:], names[index % compositions])
            for index, row in enumerate(ids)
        ]

    def prepare(self, examples: list[Example], batch_size: int) -> float:
        """Take these examples; seconds that it took, beyond what every system does."""
        self.listed = examples
        order = list(MixedLengthSampler(examples, batch_size, self.job.seed))
        self.batches = [
            order[start : start + batch_size] for start in range(0, len(order), batch_size)
        ]
        self.parameters = self._fresh()
        self.optimizer = (
            torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0)
            if self.parameters
            else None
        )
        started = time.perf_counter()
        self._build()
        return time.perf_counter() - started

    @abstractmethod
    def _fresh(self) -> list[nn.Parameter]:
        """New parameters, at the identity."""

    def _build(self) -> None:  # noqa: B027  (most have nothing to prepare)
        """What a system does before its first step."""

    @abstractmethod
    def _backward(self, rows: list[Example]) -> Tensor:
        """Gradients of the mean loss over the rows' tokens; returns the loss."""

    def _rows(self, number: int) -> list[Example]:
        """The batch of a step; the epochs repeat."""
        return [self.listed[index] for index in self.batches[number % len(self.batches)]]

    def step(self, number: int) -> tuple[float, float]:
        """One optimizer step on a batch: seconds, loss."""
        rows = self._rows(number)
        started = time.perf_counter()
        loss = self._backward(rows)
        if self.optimizer:
            torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
        wait_for(self.device)
        return time.perf_counter() - started, float(loss)

    def __call__(self, task: str, argument: Any) -> Any:
        """Answer the parent process."""
        match task:
            case "prepare":
                listed = self.examples() if argument is None else self.synthetic(**argument)
                seconds = self.prepare(
                    listed, self.job.batch_size if argument is None else len(listed)
                )
                return {"seconds": seconds, "steps": len(self.batches)}
            case "step":
                return self.step(argument)
            case "peak":
                return peak_mb(self.device)
            case "machine":
                return machine(self.device, self.model.dtype)
            case "flops":
                return needed_flops(self.model, self.layer + 1, self._rows(argument))
        raise RoadError(f"no such task {task!r}")


class Plain(_Training):
    """roadint without prefix reuse."""

    def _fresh(self) -> list[nn.Parameter]:
        self.road = RoadModel(self.model, RoadIntervention(layer=self.layer, subspaces=HALVES))
        return list(self.road.interventions.parameters())

    def _nll(self, rows: list[Example]) -> Tensor:
        """Of one micro-batch, [tokens]."""
        return completion_nll(self.road, moved(self.collator(rows), self.device))[0]

    def _backward(self, rows: list[Example]) -> Tensor:
        tokens = sum(len(row.completion) for row in rows)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(rows), self.job.micro_batch):
            loss = self._nll(rows[start : start + self.job.micro_batch]).sum() / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total


class Roadint(Plain):
    """roadint as it trains: the prefix computed once."""

    def _build(self) -> None:
        self.cache = PrefixCache.build(
            self.road, self.listed, self.collator, folder=Path(tempfile.gettempdir())
        )

    def _nll(self, rows: list[Example]) -> Tensor:
        return self.cache.nll(self.road, moved(self.cache(rows), self.device))[0]


class Pyvene(_Training):
    """A plain RoAd intervention in pyvene, in pyreft's training step."""

    def _fresh(self) -> list[nn.Parameter]:
        self.intervenable, intervention = rival.wrapped(self.model, self.layer, self.width)
        return list(intervention.parameters())

    def _backward(self, rows: list[Example]) -> Tensor:
        strengths = [self._strengths(row.composition) for row in rows]
        loss = rival.loss(
            self.intervenable, rows, strengths, rival.batch(rows, self.collator.fill, self.device)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _strengths(self, composition: str | None) -> Tensor:
        terms = dict(Composition.parse(composition, HALVES).terms)
        quarter = self.width // 4
        return torch.tensor(
            [terms.get("german", 0.0)] * quarter
            + [terms.get("english", 0.0)] * (self.width // 2 - quarter)
        )


class Bare(_Training):
    """The untouched model: one forward pass and its loss, nothing trained."""

    def _fresh(self) -> list[nn.Parameter]:
        return []

    def _backward(self, rows: list[Example]) -> Tensor:
        with torch.no_grad():
            loss: Tensor = self.model(**rival.batch(rows, self.collator.fill, self.device)).loss
        return loss


SYSTEMS: dict[str, Callable[[Job], Any]] = {
    "roadint": Roadint,
    "roadint, no prefix reuse": Plain,
    "pyvene": Pyvene,
    "bare model, forward only": Bare,
}


def needed_flops(model: Any, skipped: int, rows: Sequence[Example]) -> float:
    """What a step must compute for an edit of the last prompt token, without padding: products alone, two operations each.

    A linear map costs 2 operations a weight and token forward and 2 backward (the weights are frozen); so does the head for each
    scored token. Attention costs 4 operations a channel for each pair of query and key forward, 8 backward.
    """
    config = text_config(model)
    layers = find_layers(model)[1][skipped:]
    weights = sum(parameter.numel() for parameter in layers.parameters() if parameter.ndim == 2)
    head = model.get_output_embeddings().weight.numel()
    channels = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    total = 0.0
    for row in rows:
        tokens, before = len(row.completion), len(row.prompt) - 1
        pairs = tokens * before + tokens * (tokens + 1) / 2
        total += 4 * tokens * (weights + head) + 12 * pairs * channels * len(layers)
    return total
