"""Places: the pairs that an operation turns, and where their blocks lie in a row of the table."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

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


def identity(blocks: int) -> Rotation:
    """The rotation that leaves everything as it is."""
    return Rotation(torch.ones(blocks, dtype=torch.complex64))


def put(row: Rotation, blocks: slice, factor: Rotation) -> Rotation:
    """A row whose blocks in a range are turned further.

    Args:
        row: The rotation of all blocks; its tensors may be written over.
        blocks: The range.
        factor: The rotation of the range, which acts after those of the row.
    """
    v = None if row.v is None else row.v[blocks]
    made = Rotation(factor.u, factor.v) @ Rotation(row.u[blocks], v)
    row.u[blocks] = made.u
    if made.v is None:
        return row
    whole: Tensor = torch.zeros_like(row.u) if row.v is None else row.v
    whole[blocks] = made.v
    return Rotation(row.u, whole)
