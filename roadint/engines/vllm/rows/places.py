"""Places: the pairs that an operation turns, and where their blocks lie in a row of the table."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from roadint.errors import RoadError
from roadint.rotation.rotation import Rotation


@dataclass(frozen=True)
class Place:
    """A range of a module's output whose pairs are turned.

    Args:
        offset: The first dim of the range.
        width: How many dims it has.
        group: The group size of the pairing.
        first: Where its blocks begin in a row of the table.
        number: Its number among all places of the table.
    """

    offset: int
    width: int
    group: int
    first: int
    number: int = field(default=0, compare=False)  # `first` tells places apart

    @property
    def blocks(self) -> slice:
        """Its blocks in a row of the table."""
        return slice(self.first, self.first + self.width // 2)


@dataclass
class Places:
    """The places of an engine, by key; their blocks lie end to end in a row of a table.

    They do not change once a model is compiled.
    """

    blocks: int = 0
    _by_key: dict[Hashable, Place] = field(default_factory=dict)

    def add(self, key: Hashable, offset: int, width: int, group: int) -> Place:
        """The place of a key; a new one where there is none."""
        if key not in self._by_key:
            self._by_key[key] = Place(offset, width, group, self.blocks, len(self))
            self.blocks += width // 2
        return self._by_key[key]

    @property
    def by_key(self) -> Mapping[Hashable, Place]:
        """All places, in the order of their blocks."""
        return self._by_key

    def __len__(self) -> int:
        return len(self._by_key)


def check_variant(variant: str, mirrored: bool, path: str) -> None:
    """Refuse a variant whose rows need v, where the table has none.

    Args:
        variant: That of an intervention or an adapter.
        mirrored: Whether the table has v.
        path: The checkpoint, for the message.

    Raises:
        RoadError: where it has none.
    """
    if variant != "road_1" and not mirrored:
        raise RoadError(
            f"{path} is {variant}, and the engine was started with road_1 alone: start it with "
            f"{path}"
        )


def identity(*shape: int) -> Rotation:
    """The rotation that leaves everything as it is."""
    return Rotation(torch.ones(shape, dtype=torch.complex64))


def put(rows: Rotation, where: Any, factor: Rotation) -> Rotation:
    """Rotations whose blocks are turned further in a part of them.

    Args:
        rows: The rotations of all blocks; their tensors may be written over.
        where: The index of the part in these tensors.
        factor: The rotations of the part, which act after those of the rows.
    """
    v = None if rows.v is None else rows.v[where]
    made = Rotation(factor.u, factor.v) @ Rotation(rows.u[where], v)
    rows.u[where] = made.u
    if made.v is None:
        return rows
    whole: Tensor = torch.zeros_like(rows.u) if rows.v is None else rows.v
    whole[where] = made.v
    return Rotation(rows.u, whole)
