"""PrefixCache: batches that hold only what a training step must compute, and their loss."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from roadint.data.collate import Collator, Example, completion_nll, moved, targets
from roadint.data.prompts import pad
from roadint.model.road_model import RoadModel
from roadint.training.prefix.attention import PlainAttention
from roadint.training.prefix.cut_model import CutModel
from roadint.training.prefix.plan import TokenPlan, first_needed
from roadint.training.prefix.recording import record_prefixes
from roadint.training.prefix.reusable import CannotReuseError, check_reusable
from roadint.training.prefix.storage import PrefixStorage, StorageKind

# Mean differences of a token's likelihood, in nats, that rounding explains.
_ROUNDING, _HALF_PRECISION_ROUNDING = 1e-3, 0.25
_Tokens = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class PrefixReport:
    """What was stored, and what it took.

    Attributes:
        storage: Where it is stored.
        examples: The number of distinct examples.
        skipped_layers: The number of layers, from the lowest, that steps do not run.
        megabytes: The size of what is stored.
        seconds: The duration of the pass over the data.
    """

    storage: StorageKind
    examples: int
    skipped_layers: int
    megabytes: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"prefix reuse: the lowest {self.skipped_layers} layers and the tokens before the edit "
            f"computed once for {self.examples} examples "
            f"({self.storage}: {self.megabytes:.0f} MB, {self.seconds:.1f} s)"
        )


class PrefixCache:
    """A collator that replaces `Collator`, whose batches hold only what a step must compute.

    `PrefixCache.build` fills it. A batch with an example that is not stored is made by the plain
    collator.
    """

    def __init__(
        self,
        cut: CutModel,
        collator: Collator,
        index: Mapping[_Tokens, int],
        storage: PrefixStorage,
        seconds: float = 0.0,
    ) -> None:
        self.cut, self.storage = cut, storage
        megabytes = round(storage.size / 1e6, 3)
        self.report = PrefixReport(
            storage.kind, len(index), cut.skipped, megabytes, round(seconds, 1)
        )
        self._collator, self._index = collator, index

    @classmethod
    def build(
        cls,
        road: RoadModel,
        examples: Sequence[Example],
        collator: Collator,
        *,
        memory: float | None = None,
        folder: Path,
        quiet: bool = True,
    ) -> "PrefixCache":
        """Run the base model over the data once, and store what every step would compute again.

        Args:
            road: The model to train.
            examples: The examples of the training.
            collator: Makes plain batches of the examples.
            memory: The budget in bytes, on the model's device; by default a quarter of what is
                free. Where it is too small, only hidden states (of all tokens) are stored; where it
                is too small for these, everything is stored in files.
            folder: The folder for files, which vanish with the process.
            quiet: Whether there is no progress bar.

        Returns:
            A cache whose losses are the model's own.

        Raises:
            CannotReuseError: where the prefix of this model or data can't be reused.
        """
        started = time.perf_counter()
        check_reusable(road.model)
        distinct = {_tokens_of(example): example for example in examples}
        listed = list(distinct.values())
        longest = max(listed, key=len)
        cut, plan = CutModel.probe(road, longest.inputs[:2]), TokenPlan.of(road, listed)
        if not cut.skipped and not bool(plan.starts.any()):
            raise CannotReuseError("the edit begins at the first token of the lowest layer")
        storage = PrefixStorage.allocate(cut, plan, memory, folder)
        record_prefixes(cut, listed, storage, collator.fill, quiet=quiet)
        index = {tokens: number for number, tokens in enumerate(distinct)}
        cache = cls(cut, collator, index, storage, time.perf_counter() - started)
        cache.check_likelihoods(road, longest)
        return cache

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make one batch, as `Collator` does, but from the first token on that a row needs.

        Args:
            examples: One a row.

        Returns:
            The batch, with what is stored of its rows as "hidden" and "prefix".
        """
        numbers = [self._index.get(_tokens_of(example), -1) for example in examples]
        if min(numbers) < 0:
            return self._collator(examples)
        index, plan = torch.tensor(numbers), self.storage.plan
        starts, lengths = plan.starts[index], plan.lengths[index]
        firsts = zip(examples, starts.tolist(), strict=True)
        ids = pad(
            [example.inputs[start:] for example, start in firsts], self._collator.fill, "right"
        )
        rank = starts[:, None] + torch.arange(ids.shape[1])
        mask = rank < lengths[:, None]
        rank = rank.minimum(lengths[:, None] - 1)
        batch = {"input_ids": ids}
        if self.cut.takes_positions:
            batch["position_ids"] = rank
        if self.cut.skipped:
            batch["hidden"] = self.storage.hidden.get(plan.hidden_slots(index, rank))
        if bool(starts.any()):
            longest = starts.max()
            before = torch.arange(int(longest)) - (longest - starts)[:, None]
            # Indices below 0 are padding, on the left.
            slots = plan.prefix_slots(index, before.clamp(min=0))
            batch["prefix"] = self.storage.prefix.get(slots)
            mask = torch.cat([before >= 0, mask], dim=1)
        return {**batch, "attention_mask": mask.long(), **targets(examples, starts)}

    def nll(
        self, model: nn.Module, batch: dict[str, Any]
    ) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        """`completion_nll` of a batch of this cache, or a plain one.

        Args:
            model: The RoadModel, or a wrapper of it.
            batch: On the model's device.

        Returns:
            The negative log-likelihoods of the completions' tokens, in nats, and the tokens' rows.
        """
        inputs = {name: value for name, value in batch.items() if name not in ("hidden", "prefix")}
        if "prefix" in batch:
            inputs[self.cut.cache_name] = self.cut.upper.past(batch["prefix"])
        if "hidden" in batch:
            inputs["resumed"] = self.cut.resumed(batch["hidden"])
        plain = "prefix" in batch and self.cut.device.type == "cpu"
        with PlainAttention() if plain else nullcontext():
            return completion_nll(model, inputs)

    def serves(self, road: RoadModel, examples: Sequence[Example], collator: Collator) -> bool:
        """Whether a training can use what is stored, if its base model's values are the same.

        Args:
            road: The model of the training; its base model must be the same object, cut at the same
                layer.
            examples: The data of the training; all must be stored, from the first edited token on.
            collator: The collator of the training.
        """
        fits = (
            self.cut.model is road.model
            and self.cut.device == road.device
            and self.cut.skipped == road.untouched_layers()
            and self._collator.fill == collator.fill
        )
        return fits and all(self._holds(road, example) for example in examples)

    @torch.no_grad()
    def check_likelihoods(self, road: RoadModel, example: Example) -> None:
        """Compare an example's likelihood with that of a plain batch.

        It reveals whatever a model does that prefix reuse does not foresee.

        Args:
            road: The model.
            example: A stored example.

        Raises:
            CannotReuseError: where they differ by more than rounding.
        """
        device = self.cut.device
        plain = completion_nll(road, moved(self._collator([example]), device))[0]
        reused = self.nll(road, moved(self([example]), device))[0]
        half = self.cut.layout.dtype.itemsize < 4
        allowed = _HALF_PRECISION_ROUNDING if half else _ROUNDING
        difference = float((plain - reused).abs().mean())
        if not difference <= allowed:  # nor is "not a number" allowed
            raise CannotReuseError(
                f"{type(self.cut.model).__name__} gives other likelihoods with it "
                f"(by {difference:.2g} nats a token)"
            )

    def _holds(self, road: RoadModel, example: Example) -> bool:
        number = self._index.get(_tokens_of(example))
        if number is None:
            return False
        return int(self.storage.plan.starts[number]) <= first_needed(road, example)


def _tokens_of(example: Example) -> _Tokens:
    """The key of what is stored, which does not depend on the composition."""
    return tuple(example.prompt), tuple(example.completion)
