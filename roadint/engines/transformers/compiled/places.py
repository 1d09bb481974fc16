"""Where a compiled graph turns: the outputs of linear layers, and hidden states at sites."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from roadint.adapters.adapter import RoadAdapter
from roadint.architecture.devices import on_device
from roadint.architecture.outputs import hidden_of, with_hidden
from roadint.engines.adapters import LoweredAdapters, LoweredRotations
from roadint.engines.transformers.compiled.slots import Slots
from roadint.grammar.composition import Composition
from roadint.interventions.base import SubspaceIntervention
from roadint.rotation.basis import Frame
from roadint.rotation.kernels.operation import turn_rows
from roadint.rotation.rotation import Rotation

LayoutKey = tuple[Any, tuple[int, ...]]
"""A layout and the group sizes of its targets."""


class Place:
    """The turn of one module's output, in the graph.

    Args:
        path: The path of the module.
        slots: The rotations.
        first: The place's first block in them.
        group: The group size of the pairs.
        frame: The basis of the pairs; None for the identity.
    """

    def __init__(
        self, path: str, slots: Slots, first: int, group: int, frame: Frame | None = None
    ) -> None:
        self.path, self.slots, self.first, self.group = path, slots, first, group
        self.frame = frame
        self.probe: Callable[[Place, Any], None] | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The module's output with its tokens turned, those that have a slot."""
        if self.probe is not None:
            self.probe(self, output)
        hidden = hidden_of(output)
        slots = self.slots
        table = (slots.u, slots.v, slots.index, self.first, self.group)
        if self.frame is None:
            turned = turn_rows(hidden, *table)
        else:
            with torch.autocast(hidden.device.type, enabled=False):
                coordinates = self.frame.into(hidden)
                # Exactly 0, and so no change, for tokens without a slot.
                difference = turn_rows(coordinates, *table) - coordinates
                turned = (hidden + self.frame.out(difference)).to(hidden.dtype)
        return with_hidden(output, turned)


class LinearPlaces:
    """The targets of adapters, whose rotations lie end to end in the same slots.

    Args:
        adapters: Their targets are the places.
        count: How many different compositions a batch may have.
        device: Where the rotations are.
    """

    def __init__(self, adapters: Iterable[RoadAdapter], count: int, device: torch.device) -> None:
        self._first: dict[tuple[str, int], int] = {}
        blocks, mirrored = 0, False
        for adapter in adapters:
            mirrored |= adapter.variant != "road_1"
            layout = adapter.layout
            for path, of_path, group in zip(
                layout.paths, layout.blocks, adapter.groups, strict=True
            ):
                if (path, group) not in self._first:
                    self._first[path, group] = blocks
                    blocks += of_path
        self.slots = Slots(blocks, count, mirrored=mirrored, device=device)
        self.places = [
            Place(path, self.slots, first, group) for (path, group), first in self._first.items()
        ]
        self._blocks: dict[LayoutKey, Tensor | slice] = {}
        self._written: LayoutKey | None = None

    def covers(self, adapters: Iterable[RoadAdapter]) -> bool:
        """Whether adapters turn nothing but what the places can turn."""
        return all(
            (adapter.variant == "road_1" or self.slots.v is not None)
            and all(
                target in self._first
                for target in zip(adapter.layout.paths, adapter.groups, strict=True)
            )
            for adapter in adapters
        )

    def make_room(self, lowered: LoweredAdapters | None, rows: int) -> None:
        """Have as many slots as a call takes."""
        parts = () if lowered is None else lowered.rotations
        count = len(parts[0].rotation.u) if len(parts) == 1 else rows
        slots = self.slots.with_room(count, mirrored=False)
        if slots is not self.slots:
            self.slots, self._written = slots, None
            for place in self.places:
                place.slots = slots

    def write(self, lowered: LoweredAdapters | None, rows: int) -> Int[Tensor, " rows"]:
        """Put the rotations of a call into the slots.

        Args:
            lowered: The rotations; None where no adapter acts.
            rows: How many rows the call has.

        Returns:
            The slot of every row, −1 for rows without an adapter.
        """
        device = self.slots.u.device
        if lowered is None:
            return torch.full((rows,), -1, device=device)
        parts = lowered.rotations
        key = (parts[0].layout, parts[0].groups) if len(parts) == 1 else None
        if self._written != key:  # what another layout left
            self.slots.clear(slice(None))
        self._written = key
        if key is None:
            self.slots.put(self._product(parts, rows), slice(None))
            slot = torch.arange(rows, device=device)
        else:
            self.slots.put(parts[0].rotation, self._blocks_of(*key))
            slot = parts[0].number_of_rows(rows).to(device)
        return torch.where(on_device([bool(terms) for terms in lowered.terms], device), slot, -1)

    def _product(self, parts: Sequence[LoweredRotations], rows: int) -> Rotation:
        """The rotations of adapters of several layouts, one a row: a target may be in many."""
        u = torch.ones(
            rows, self.slots.u.shape[1], dtype=torch.complex64, device=self.slots.u.device
        )
        v = None if self.slots.v is None else torch.zeros_like(u)
        for part in parts:
            blocks, turned = self._blocks_of(part.layout, part.groups), part.of_rows(rows)
            before = Rotation(u[:, blocks], None if v is None else v[:, blocks])
            after = Rotation(turned.u, turned.v) @ before
            u[:, blocks] = after.u
            if v is not None and after.v is not None:
                v[:, blocks] = after.v
        return Rotation(u, v)

    def _blocks_of(self, layout: Any, groups: tuple[int, ...]) -> Tensor | slice:
        key = (layout, groups)
        if key not in self._blocks:
            starts = [self._first[target] for target in zip(layout.paths, groups, strict=True)]
            numbers = torch.cat(
                [
                    torch.arange(start, start + blocks)
                    for start, blocks in zip(starts, layout.blocks, strict=True)
                ]
            )
            first, last = int(numbers[0]), int(numbers[-1])
            whole = torch.equal(numbers, torch.arange(first, first + len(numbers)))
            self._blocks[key] = slice(first, last + 1) if whole else numbers.to(self.slots.u.device)
        return self._blocks[key]


@torch.no_grad()
def site_place(intervention: SubspaceIntervention, path: str, count: int) -> Place:
    """The place of an intervention whose edit is a turn.

    Args:
        intervention: The intervention.
        path: The path of the module whose output it edits.
        count: How many rows a batch may have.
    """
    unturned = intervention.rows(intervention.strengths([Composition(())]))
    rotation, frame = intervention.as_turn(unturned)  # type: ignore[misc]
    blocks, device = rotation.u.shape[-1], rotation.u.device
    slots = Slots(blocks, count, mirrored=rotation.v is not None, device=device)
    return Place(path, slots, 0, rotation.group, frame)


def by_path(places: Sequence[Place]) -> dict[str, list[Place]]:
    """Places by the path of their module, in order."""
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.path, []).append(place)
    return found
