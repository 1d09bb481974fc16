"""Prefix reuse: what the edit can't change is computed once, instead of at every step.

Two things stay the same while rotations train on a frozen causal model: everything below the lowest edited layer, and the tokens
before the first edited one, whose keys and values in the layers above are all that later tokens see of them. One pass stores, per
example, the hidden states that enter the lowest layer that the edit reaches, from the first edited token on, and those keys and
values. A training step then runs the layers above, over the edited token and what follows it. An edit of the last prompt token
leaves a step the completion alone; one of all tokens saves the layers below.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roadint.architecture.properties import cache_name, takes_positions
from roadint.data.collate import Collator, Example, completion_nll, moved, targets
from roadint.data.prompts import pad
from roadint.engines.transformers.partial import Resumed, output_after, run_until_enough
from roadint.errors import RoadError, first_line
from roadint.model.road_model import RoadModel
from roadint.progress import track
from roadint.training.attention import PlainAttention
from roadint.training.fingerprint import behaviour_of, fingerprint_of, same_behaviour
from roadint.training.key_values import Layout, Recorder, UnknownCacheError, layout_of
from roadint.training.storage import NoRoomError, Storage, free_disk, free_memory

logger = logging.getLogger(__name__)
_TOKENS = 2048  # of a batch of the pass over the data, padding included


class CannotReuseError(Exception):
    """Why the prefix of this model or data can't be reused."""


@dataclass(frozen=True)
class Report:
    """What was chosen (storage: "memory", "hidden states in memory" or "disk"), and what it took."""

    storage: str
    examples: int
    skipped_layers: int
    megabytes: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"prefix reuse: the lowest {self.skipped_layers} layers and the tokens before the edit computed once for "
            f"{self.examples} examples ({self.storage}: {self.megabytes:.0f} MB, {self.seconds:.1f} s)"
        )


@dataclass(frozen=True)
class _Plan:
    """Which token lies where. starts, lengths: [examples] int, the first token that a step needs and the number of tokens.

    shared: with how many tokens all examples begin (the template's), stored once: slots 0 to `shared` of the keys and values.
    """

    starts: Tensor
    lengths: Tensor
    shared: int

    @property
    def hidden_count(self) -> int:
        return int((self.lengths - self.starts).sum())

    @property
    def prefix_count(self) -> int:
        return self.shared + int((self.starts - self.shared).sum())

    def hidden_slots(self, index: Tensor, rank: Tensor) -> Tensor:
        """Slots of the hidden states of the tokens `rank` [rows, columns] of the examples `index` [rows]."""
        counts = self.lengths - self.starts
        return (counts.cumsum(0) - counts - self.starts)[index][:, None] + rank

    def prefix_slots(self, index: Tensor, rank: Tensor) -> Tensor:
        """Slots of the keys and values of the tokens `rank` [rows, columns] of the examples `index` [rows]."""
        counts = self.starts - self.shared
        own = (counts.cumsum(0) - counts)[index][:, None] + rank
        return torch.where(rank < self.shared, rank, own)


def build(
    road: RoadModel,
    examples: Sequence[Example],
    collator: Collator,
    *,
    memory: float | None,
    folder: Path,
    quiet: bool = True,
) -> "PrefixCache | None":
    """A PrefixCache, or None where the prefix can't be reused; one line in the log says which, and why. Raises RoadError."""
    try:
        cache = PrefixCache(road, examples, collator, memory=memory, folder=folder, quiet=quiet)
    except RoadError:
        raise
    except (CannotReuseError, UnknownCacheError, NoRoomError) as reason:
        logger.warning("no prefix reuse, training runs the plain way: %s", reason)
        return None
    except (
        Exception
    ) as error:  # whatever a model that keeps other things than keys and values may raise
        logger.warning(
            "no prefix reuse, training runs the plain way: %s (%s)",
            type(error).__name__,
            first_line(error),
        )
        return None
    logger.info("%s", cache.report)
    return cache


@dataclass
class Kept:
    """A place for a PrefixCache between trainings on one model: those with the same lowest layer and examples share it."""

    cache: "PrefixCache | None" = None


class PrefixCache:
    """A collator in place of `Collator`, whose batches hold only what a step must compute; `nll` is their loss.

    memory: the budget in bytes, on the model's device; a quarter of what is free by default. Beyond it only the hidden states
    are kept (of all tokens), beyond that everything in files in `folder`, which vanish with the process.
    Examples that it does not hold go the plain way. Raises CannotReuseError, UnknownCacheError or NoRoomError.
    """

    def __init__(
        self,
        road: RoadModel,
        examples: Sequence[Example],
        collator: Collator,
        *,
        memory: float | None = None,
        folder: Path,
        quiet: bool = True,
    ) -> None:
        started = time.perf_counter()
        _check_deterministic(road.model)
        self._made_from: tuple[str | None, Any] | None = None
        self._base, self._device, self._collator = road.model, road.device, collator
        self._positions = takes_positions(road.model)
        self._skipped = road.untouched_layers()
        distinct = {_key(example): example for example in examples}
        self._index = {key: index for index, key in enumerate(distinct)}
        listed = list(distinct.values())
        longest = max(listed, key=len)
        probe = torch.tensor([longest.inputs[:2]], device=self._device)
        layout = layout_of(self._base, probe)
        self._layout = layout.above(self._skipped)
        output = (
            output_after(self._base, self._skipped, input_ids=probe)
            if self._skipped
            else probe[..., None][..., :0]
        )
        self._as_tuple = isinstance(output, tuple)
        hidden = output[0] if self._as_tuple else output
        storage = self._allocate(road, listed, hidden.shape[-1], layout.dtype, memory, folder)
        self._fill(listed, layout, quiet)
        self._check_same(road, longest)
        sizes = self._sizes(self._plan, hidden.shape[-1], layout.dtype)
        self.report = Report(
            storage,
            len(listed),
            self._skipped,
            round(sum(sizes) / 1e6, 3),
            round(time.perf_counter() - started, 1),
        )

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One batch: as from `Collator`, from each row's first needed token on, with what is stored of it."""
        numbers = [self._index.get(_key(example), -1) for example in examples]
        if min(numbers) < 0:
            return self._collator(examples)
        index = torch.tensor(numbers)
        starts, lengths = self._plan.starts[index], self._plan.lengths[index]
        inputs = [
            example.inputs[start:] for example, start in zip(examples, starts.tolist(), strict=True)
        ]
        ids = pad(inputs, self._collator.fill, "right")
        rank = starts[:, None] + torch.arange(ids.shape[1])
        kept = rank < lengths[:, None]
        rank = rank.minimum(lengths[:, None] - 1)
        batch = {"input_ids": ids}
        if self._positions:
            batch["position_ids"] = rank
        if self._skipped:
            batch["hidden"] = self._hidden.rows(self._plan.hidden_slots(index, rank))
        if bool(starts.any()):
            before = (
                torch.arange(int(starts.max())) - (starts.max() - starts)[:, None]
            )  # below 0: padding, on the left
            batch["prefix"] = self._prefix.rows(self._plan.prefix_slots(index, before.clamp(min=0)))
            kept = torch.cat([before >= 0, kept], dim=1)
        return {**batch, "attention_mask": kept.long(), **targets(examples, starts)}

    def nll(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """`completion_nll` of a batch, its own or a plain one. model: the RoadModel or a wrapper of it."""
        inputs = {name: value for name, value in batch.items() if name not in ("hidden", "prefix")}
        if "prefix" in batch:
            inputs[cache_name(self._base)] = self._layout.past(batch["prefix"])
        # A few queries over a long prefix: torch's fused attention is half as fast as plain products on a CPU, gradients included.
        attention = (
            PlainAttention() if "prefix" in batch and self._device.type == "cpu" else nullcontext()
        )
        if "hidden" in batch:
            inputs["resumed"] = Resumed(self._skipped, batch["hidden"], self._as_tuple)
        with attention:
            return completion_nll(model, inputs)

    def sign(self) -> None:
        """Note what the stored numbers were made from, for `fits` to compare: all of the base model's values, and its modes."""
        self._made_from = _values_of(self._base), behaviour_of(self._base)

    def fits(self, road: RoadModel, examples: Sequence[Example], collator: Collator) -> bool:
        """Whether this is what would be stored for another training: the same model, with the same values, lowest layer, first
        edited tokens and examples. What was not signed fits nothing."""
        if (
            self._base is not road.model
            or self._skipped != road.untouched_layers()
            or self._collator.fill != collator.fill
        ):
            return False
        if not self._same_base(road.device) or not examples:
            return False
        numbers = [self._index.get(_key(example), -1) for example in examples]
        needed = [_first_needed(road, example) for example in examples]
        if min(numbers) < 0 or any(
            int(self._plan.starts[number]) > first
            for number, first in zip(numbers, needed, strict=True)
        ):
            return False
        try:
            _check_deterministic(road.model)
            self._check_same(road, max(examples, key=len))
        except CannotReuseError:
            return False
        return True

    def _same_base(self, device: torch.device) -> bool:
        if self._made_from is None or device != self._device:
            return False
        values, behaviour = self._made_from
        if values is None or not same_behaviour(behaviour, behaviour_of(self._base)):
            return False
        return values == _values_of(self._base)

    def _allocate(
        self,
        road: RoadModel,
        examples: Sequence[Example],
        width: int,
        dtype: torch.dtype,
        memory: float | None,
        folder: Path,
    ) -> str:
        """Choose what is kept where and make room for it. Raises NoRoomError, and CannotReuseError where nothing would be saved."""
        lengths = torch.tensor([len(example.inputs) for example in examples])
        starts = torch.tensor([_first_needed(road, example) for example in examples])
        if not self._skipped and not bool(starts.any()):
            raise CannotReuseError("the edit begins at the first token of the lowest layer")
        shared = min(_common_start([example.prompt for example in examples]), int(starts.min()))
        whole, hidden_only = (
            _Plan(starts, lengths, shared),
            _Plan(torch.zeros_like(starts), lengths, 0),
        )
        budget = free_memory(self._device) / 4 if memory is None else memory
        needed, least = (sum(self._sizes(plan, width, dtype)) for plan in (whole, hidden_only))
        if needed <= budget:
            storage, self._plan, on_disk = "memory", whole, None
        elif self._skipped and least <= budget:
            storage, self._plan, on_disk = "hidden states in memory", hidden_only, None
        elif needed <= free_disk(folder) / 2:
            storage, self._plan, on_disk = "disk", whole, folder
        else:
            raise NoRoomError(
                f"{needed / 1e6:.0f} MB needed, {budget / 1e6:.0f} MB allowed in memory, {free_disk(folder) / 2e6:.0f} MB on disk"
            )
        self._hidden = Storage(self._plan.hidden_count, width, dtype, self._device, on_disk)
        self._prefix = Storage(
            self._plan.prefix_count, self._layout.width, dtype, self._device, on_disk
        )
        return storage

    def _sizes(self, plan: _Plan, width: int, dtype: torch.dtype) -> tuple[int, int]:
        """Bytes of the hidden states and of the keys and values."""
        return (
            plan.hidden_count * width * dtype.itemsize,
            plan.prefix_count * self._layout.width * dtype.itemsize,
        )

    def _fill(self, examples: Sequence[Example], layout: Layout, quiet: bool) -> None:
        """The pass over the data, long examples first, in batches of like length."""
        plan, shared = self._plan, self._plan.shared
        header = torch.zeros(1, 0, layout.width, dtype=layout.dtype, device=self._device)
        if shared:
            recorder = Recorder(len(layout.shapes))
            ids = torch.tensor([examples[0].prompt[:shared]], device=self._device)
            run_until_enough(
                self._base, input_ids=ids, **{cache_name(self._base): layout.past(header, recorder)}
            )
            header = layout.joined(recorder)
            self._prefix.put(
                torch.arange(shared), header[0, :, layout.width - self._layout.width :]
            )
        batches = list(_batches(plan.lengths - shared))
        for index in track(batches, len(batches), "prefix reuse", quiet=quiet):
            ids = pad(
                [examples[i].inputs[shared:] for i in index.tolist()], self._collator.fill, "right"
            )
            rank = (shared + torch.arange(ids.shape[1])).expand(len(index), -1)
            hidden = None
            if self._skipped:
                past = layout.past(header.expand(len(index), -1, -1))
                inputs = self._inputs(ids, rank, rank < plan.lengths[index, None], past)
                output = output_after(self._base, self._skipped, **inputs)
                hidden = output[0] if self._as_tuple else output
                wanted = (rank >= plan.starts[index, None]) & (rank < plan.lengths[index, None])
                self._hidden.put(
                    plan.hidden_slots(index, rank)[wanted], hidden[wanted.to(hidden.device)]
                )
            columns = int(plan.starts[index].max()) - shared
            if columns and self._layout.width:
                rank = rank[:, :columns]
                wanted = rank < plan.starts[index, None]
                recorder = Recorder(len(layout.shapes))
                past = self._layout.past(header.expand(len(index), -1, -1), recorder)
                inputs = self._inputs(ids[:, :columns], rank, wanted, past)
                known = Resumed(
                    self._skipped, None if hidden is None else hidden[:, :columns], self._as_tuple
                )
                run_until_enough(known.of(self._base), **inputs)
                added = self._layout.joined(recorder)
                self._prefix.put(
                    plan.prefix_slots(index, rank)[wanted], added[wanted.to(added.device)]
                )

    def _inputs(self, ids: Tensor, rank: Tensor, kept: Tensor, past: Any) -> dict[str, Any]:
        """What the base model takes, for tokens that follow the shared ones."""
        mask = torch.cat(
            [torch.ones(len(ids), self._plan.shared, dtype=torch.long), kept.long()], dim=1
        )
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            **({"position_ids": rank} if self._positions else {}),
        }
        return {
            **{name: value.to(self._device) for name, value in inputs.items()},
            cache_name(self._base): past,
        }

    @torch.no_grad()
    def _check_same(self, road: RoadModel, example: Example) -> None:
        """Whatever a model does that is not foreseen here, it shows in the likelihood of an example."""
        plain = completion_nll(road, moved(self._collator([example]), self._device))[0]
        reused = self.nll(road, moved(self([example]), self._device))[0]
        allowed = (
            1e-3 if self._layout.dtype.itemsize >= 4 else 0.25
        )  # half precision alone moves a token's by 0.1
        difference = float((plain - reused).abs().mean())
        if not difference <= allowed:
            raise CannotReuseError(
                f"{type(self._base).__name__} gives other likelihoods with it (by {difference:.2g} nats a token)"
            )


def _values_of(model: nn.Module) -> str | None:
    return fingerprint_of([*model.named_parameters(), *model.named_buffers()])


def _key(example: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens alone: what is stored does not depend on the composition."""
    return tuple(example.prompt), tuple(example.completion)


def _first_needed(road: RoadModel, example: Example) -> int:
    """The first token that a step must run: the first edited one, or the one that predicts the completion's first."""
    if road.adapters:
        return 0  # they act on every token
    length = len(example.prompt)
    rank, prompt_length = torch.arange(length)[None], torch.tensor([length])
    edited = [
        site.position.edited(rank, prompt_length)[0].nonzero()[:, 0].tolist() for site in road.sites
    ]
    return int(min([length - 1, *(each[0] for each in edited if each)]))


def _common_start(prompts: Sequence[list[int]]) -> int:
    """With how many equal tokens all prompts begin."""
    first, last = min(prompts), max(prompts)  # whatever these two share, all between them share
    return next(
        (
            place
            for place, (one, other) in enumerate(zip(first, last, strict=False))
            if one != other
        ),
        len(first),
    )


def _batches(lengths: Tensor) -> Iterator[Tensor]:
    """The indices of all examples, long ones first, in batches of at most _TOKENS tokens."""
    order = lengths.argsort(descending=True)
    while len(order):
        rows = max(1, _TOKENS // max(1, int(lengths[order[0]])))
        yield order[:rows]
        order = order[rows:]


def _check_deterministic(model: nn.Module) -> None:
    training = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if training:
        raise CannotReuseError(
            f"the base model trains ({training[0]} and {len(training) - 1} more)"
        )
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        raise CannotReuseError("gradient checkpointing computes the layers again")
    for name, module in model.named_modules():
        rates = (
            [module.p]
            if isinstance(module, nn.Dropout)
            else [each for key, each in vars(module).items() if "drop" in key]
        )
        if module.training and any(isinstance(rate, float) and rate > 0 for rate in rates):
            raise CannotReuseError(f"dropout is active in {name}")
