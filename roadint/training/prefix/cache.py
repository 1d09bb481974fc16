"""PrefixCache: what a training step need not compute, stored, and the loss of its batches."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from roadint.data.collate import Collator, Example, completion_nll, moved
from roadint.engines.transformers.partial import Resumed
from roadint.engines.transformers.view import Forward
from roadint.model.road_model import RoadModel
from roadint.training.prefix.ahead import OnHost
from roadint.training.prefix.attention import PlainAttention
from roadint.training.prefix.batches import PrefixBatches, Tokens, tokens_of
from roadint.training.prefix.cut_model import CutModel
from roadint.training.prefix.plan import TokenPlan, first_needed
from roadint.training.prefix.recording import record_prefixes
from roadint.training.prefix.reusable import CannotReuseError, check_reusable
from roadint.training.prefix.storage import PrefixStorage, StorageKind

# Mean differences of a token's likelihood, in nats, that rounding explains.
_ROUNDING, _HALF_PRECISION_ROUNDING = 1e-3, 0.25


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
    """What is stored, batches that hold only what a step must compute, and their loss.

    `PrefixCache.build` fills it.

    Attributes:
        batches: Makes the batches, in place of a `Collator`; calling the cache does the same.
    """

    def __init__(
        self,
        cut: CutModel,
        collator: Collator,
        index: Mapping[Tokens, int],
        storage: PrefixStorage,
        seconds: float = 0.0,
    ) -> None:
        self.cut, self.storage = cut, storage
        self.batches = PrefixBatches(
            collator, index, storage, skips=cut.skipped > 0, takes_positions=cut.takes_positions
        )
        megabytes = round(storage.size / 1e6, 3)
        self.report = PrefixReport(
            storage.kind, len(index), cut.skipped, megabytes, round(seconds, 1)
        )
        self._collator = collator
        self._stream: torch.cuda.Stream | None = None

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
        distinct = {tokens_of(example): example for example in examples}
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
        """Make one batch; see `PrefixBatches`."""
        return self.batches(examples)

    def fetch(self, batches: Sequence[dict[str, Any]]) -> None:
        """Begin to copy what batches hold on the host to a GPU, while it computes something else.

        Args:
            batches: Batches of this cache, or plain ones.
        """
        if self.cut.device.type != "cuda":
            return
        held = [part for batch in batches for part in batch.values() if isinstance(part, OnHost)]
        for part in held:
            if self._stream is None:
                self._stream = torch.cuda.Stream(self.cut.device)  # type: ignore[no-untyped-call]
            part.start(self._stream)

    def nll(
        self,
        model: nn.Module,
        batch: dict[str, Any],
        compiled: Mapping[nn.Module, Forward] | None = None,
    ) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        """`completion_nll` of a batch of this cache, or a plain one.

        Args:
            model: The RoadModel, or a wrapper of it.
            batch: On the model's device.
            compiled: Layer → its compiled forward.

        Returns:
            The negative log-likelihoods of the completions' tokens, in nats, and the tokens' rows.
        """
        inputs = {name: value for name, value in batch.items() if name not in ("hidden", "prefix")}
        if "prefix" in batch:
            prefix = self.storage.prefix.get(batch["prefix"])
            inputs[self.cut.cache_name] = self.cut.upper.past(prefix)
        if "hidden" in batch:
            hidden = self.storage.hidden.get(batch["hidden"])
            inputs["resumed"] = replace(self.cut.resumed(hidden), forwards=compiled or {})
        elif compiled:
            inputs["resumed"] = Resumed(0, None, forwards=compiled)
        plain = "prefix" in batch and self.cut.device.type == "cpu" and not compiled
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
        number = self.batches.index.get(tokens_of(example))
        if number is None:
            return False
        return int(self.storage.plan.starts[number]) <= first_needed(road, example)
