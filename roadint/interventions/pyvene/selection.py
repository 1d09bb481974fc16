"""Which units act in a row: pyvene's `subspaces` and `subspace_partition`, read.

They hold names, indices, dims or compositions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from roadint.errors import RoadError, quoted
from roadint.grammar.composition import Composition
from roadint.grammar.subspace import Partition, Subspace, SubspaceLike
from roadint.interventions.arguments import index_of


def entries_of(subspaces: Any, rows: int) -> list[Any]:
    """pyvene's `subspaces` as one entry a row.

    Raises:
        RoadError: for anything else.
    """
    entries = _items(subspaces)
    if entries is None:
        raise RoadError(
            f"subspaces {quoted(subspaces)} are for no row: "
            "expected one entry a row, such as [[0], [0, 1]]"
        )
    if len(entries) != rows:
        raise RoadError(f"{len(entries)} entries in subspaces for {rows} rows: expected one a row")
    return entries


def chosen_by(
    entry: Any, partition: Partition, dims_of: str | None
) -> Composition | Float[Tensor, " units"]:
    """What acts in a row: a composition or, where integers are dims, the strength of every unit.

    Args:
        entry: The row's entry of pyvene's `subspaces`.
        partition: The intervention's partition.
        dims_of: The subspace in which integers are dims; None where they are indices into the
            partition.

    Raises:
        RoadError: for an entry that is not understood.
    """
    names = list(partition)
    if entry is None or isinstance(entry, (str, Mapping, Composition)):
        return Composition.parse(entry, names)
    items = _items(entry)
    if items is None:
        raise RoadError(
            f"{quoted(entry)} for a row's subspaces: "
            "expected a list, such as [0] or ['a', 'b'], or a composition"
        )
    if dims_of is not None and items and not any(isinstance(item, str) for item in items):
        return _strengths_of_dims(
            [_whole_number(item, "a dim") for item in items], partition, partition[dims_of]
        )
    if dims_of is not None and any(not isinstance(item, str) for item in items):
        raise RoadError(
            f"{quoted(entry)} for a row's subspaces: expected names alone, or dims alone"
        )
    return Composition.parse({_name_of(item, names): 1.0 for item in items}, names)


def _name_of(item: Any, names: list[str]) -> str:
    if isinstance(item, str):
        return item
    index = _whole_number(item, "a subspace index")
    if not 0 <= index < len(names):
        raise RoadError(
            f"subspace index {index} is outside the partition: expected 0 to {len(names) - 1}"
        )
    return names[index]


def _strengths_of_dims(
    dims: list[int], partition: Partition, held: Subspace
) -> Float[Tensor, " units"]:
    for dim in (min(dims), max(dims)):
        if not 0 <= dim < partition.width:
            raise RoadError(f"dim {dim} is outside the width: expected 0 to {partition.width - 1}")
    chosen = Subspace.from_dims(dims, partition.width, partition.unit)
    outside = sorted(set(chosen.blocks) - set(held.blocks))
    if outside:
        first = outside[0] * partition.unit
        named = f"dims {first} and {first + 1} are" if partition.unit == 2 else f"row {first} is"
        raise RoadError(f"{named} outside the subspace {held}")
    strengths = torch.zeros(partition.count, dtype=torch.float32)
    strengths[torch.tensor(chosen.blocks)] = 1.0
    return strengths


def parts_of(partition: Any) -> list[SubspaceLike]:
    """pyvene's subspace_partition, in forms that are not ambiguous.

    A list of two numbers is a half-open range, any other list of numbers has dims.

    Raises:
        RoadError: for what is no list of ranges or of dims.
    """
    parts = _items(partition)
    if not parts:
        raise RoadError(
            f"subspace_partition {quoted(partition)}: "
            "expected a list of ranges or of dims, such as [[0, 8], [8, 32]]"
        )
    return [_part(part) for part in parts]


def _part(part: Any) -> SubspaceLike:
    if isinstance(part, (str, range, slice, Subspace)):
        return part
    items = _items(part)
    if not items:
        raise RoadError(
            f"{quoted(part)} in subspace_partition: expected a range [start, end] or a list of dims"
        )
    if any(_items(item) is not None for item in items):
        return [_part(item) for item in items]
    numbers = [_whole_number(item, "a dim") for item in items]
    if len(numbers) == 2:
        return range(numbers[0], numbers[1])
    dims = set(numbers)
    starts = sorted(dim for dim in dims if dim - 1 not in dims)
    ends = sorted(dim + 1 for dim in dims if dim + 1 not in dims)
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


def _items(value: Any) -> list[Any] | None:
    """The items of a list, tuple, range, set, array or tensor; None for anything else."""
    if torch.is_tensor(value) or type(value).__module__ == "numpy":
        if not getattr(value, "ndim", 0):
            return None
        if torch.is_tensor(value) and value.dtype is torch.bool:
            raise RoadError(
                "a mask of bools where indices are counted: "
                "expected integers, such as mask.nonzero().flatten()"
            )
        listed: list[Any] = value.tolist()
        return listed
    if isinstance(value, (Sequence, range, set, frozenset)) and not isinstance(value, (str, bytes)):
        return list(value)
    return None


def _whole_number(value: Any, what: str) -> int:
    number = index_of(value)
    if number is None:
        raise RoadError(f"{quoted(value)} is not {what}: expected an integer")
    return number
