"""Subspaces: sets of whole blocks; partitions: named, disjoint subspaces (paper section 4.3).

A subspace is written as text (see roadint.grammar.ranges): `"[0, d/2)"`, `"[0, 64) | [128, 192)"`,
`"blocks[::2]"`. Also accepted are tuples of a start and an end, `(0, 64)` and `(0, "d/2")`,
`slice(0, 64)`, `range(0, 64)`, lists of those, and lists of dims. A list of two integers is refused
where it could be both, a range or two dims. Dims are counted in the order of the blocks: block i is
[2i, 2i + 2), whatever the pairing or the basis.

Some interventions have other units than blocks of two dims: LoReFT of rank r has its r matrix rows.
The grammar is the same, with `unit=1` and r as the width: "[0, d/2)" is the first half of the
matrix rows.
"""

import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from roadint.errors import RoadError, quoted
from roadint.grammar.ranges import (
    LARGEST,
    is_integer,
    read_boundary,
    read_ranges,
    runs,
    slice_range,
    two_integers,
    write_ranges,
)

# str, slice, range, (start, end), dims, a sequence of these, or a Subspace
SubspaceLike = Any
_NAME = re.compile(r"[^\W\d]\w*(@\w+)?")
_LABEL = re.compile(r"\w{1,100}")
_LONGEST_NAME = 200  # characters
_DEEPEST = 4  # lists in lists


@dataclass(frozen=True)
class Subspace:
    """A set of whole blocks.

    Its text, `str(subspace)`, is an expression of the grammar that means the same. Its length is
    the number of its blocks.

    Args:
        ranges: Sorted, disjoint, half-open ranges of blocks; ranges that touch become one.
        unit: Dims in a block.

    Raises:
        RoadError: for ranges that are none.

    Examples:
        >>> german = Subspace.parse("[0, d/2)", 64)
        >>> german.ranges, len(german), str(german)
        (((0, 16),), 16, '[0, 32)')
        >>> Subspace.parse("blocks[1::2]", 16).blocks
        [1, 3, 5, 7]
    """

    ranges: tuple[tuple[int, int], ...]
    unit: int = 2

    def __post_init__(self) -> None:
        if not is_integer(self.unit) or self.unit < 1:
            raise RoadError(_no_unit(self.unit))
        merged: list[tuple[int, int]] = []
        for pair in self.ranges if isinstance(self.ranges, (tuple, list)) else (self.ranges,):
            start, end = _integer_pair(pair) or (0, 0)
            last = merged[-1][1] if merged else 0
            if not last <= start < end <= LARGEST // self.unit:
                raise RoadError(
                    f"range {quoted(pair)} in Subspace({quoted(self.ranges)}) is none: "
                    "expected (start, end) in blocks, start below end, ranges in order and apart; "
                    "Subspace.parse reads text such as '[0, d/2)'"
                )
            if merged and last == start:
                start = merged.pop()[0]
            merged.append((start, end))
        if not merged:
            raise RoadError(
                "subspace Subspace(()) is empty: "
                "expected at least one range of blocks, such as ((0, 8),)"
            )
        object.__setattr__(self, "ranges", tuple(merged))

    @classmethod
    def parse(cls, spec: SubspaceLike, width: int, unit: int = 2) -> "Subspace":
        """Read any form of the grammar.

        Args:
            spec: Text, a tuple, slice, range or list; or a Subspace of the same unit.
            width: The width of the hidden states, in dims.
            unit: Dims in a block.

        Returns:
            The subspace.

        Raises:
            RoadError: where the form is unknown or has two meanings, a boundary is odd or outside
                the width, ranges overlap, or nothing is left.
        """
        _check_sizes(width, unit)
        dims = list(_dim_ranges(spec, width, unit))
        if not dims:
            raise RoadError(
                f"subspace {quoted(spec)} is empty: expected at least one range such as '[0, d/2)'"
            )
        for start, end in dims:
            _check_range(spec, start, end, width, unit)
        dims.sort()
        for (_, end), (start, later) in itertools.pairwise(dims):
            if start < end:
                raise RoadError(
                    f"subspace {quoted(spec)} overlaps itself on dims [{start}, {min(end, later)})"
                )
        return cls(tuple((start // unit, end // unit) for start, end in dims), unit)

    @classmethod
    def from_dims(cls, dims: Iterable[int], width: int, unit: int = 2) -> "Subspace":
        """The subspace of some dims.

        Args:
            dims: Dims of whole blocks, in any order.
            width: The width of the hidden states, in dims.
            unit: Dims in a block.

        Returns:
            The subspace.

        Raises:
            RoadError: for values that are no dims, and for parts of blocks.

        Examples:
            >>> Subspace.from_dims([5, 4, 0, 1], 16).blocks
            [0, 2]
        """
        _check_sizes(width, unit)
        chosen: set[int] = set()
        for dim in _iterated(dims):
            index = _dim(dim)
            if not 0 <= index < width:  # at once: there may be no end of them
                raise RoadError(
                    f"dimension {quoted(dim)} is outside the width: expected 0 to {width - 1}"
                )
            chosen.add(index)
        return cls.parse([range(start, end) for start, end in runs(sorted(chosen))], width, unit)

    @property
    def blocks(self) -> list[int]:
        """The indices of the blocks, ascending."""
        return [block for start, end in self.ranges for block in range(start, end)]

    def __len__(self) -> int:
        return sum(end - start for start, end in self.ranges)

    def __str__(self) -> str:
        return write_ranges(self.ranges, self.unit)


class Partition(Mapping[str, Subspace]):
    """Named, disjoint subspaces of one site, in order; they need not cover the width.

    Args:
        subspaces: By name, in any form that Subspace.parse reads.
        width: The width of the hidden states, in dims.
        unit: Dims in a block.

    Raises:
        RoadError: where there are no subspaces, a name is no plain word, or two share a block.

    Examples:
        >>> halves = Partition({"german": "[0, d/2)", "english": "[d/2, d)"}, 16)
        >>> {name: str(subspace) for name, subspace in halves.items()}
        {'german': '[0, 8)', 'english': '[8, 16)'}
        >>> halves.strengths({"german": 0.5})
        tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.0000, 0.0000, 0.0000, 0.0000])
    """

    def __init__(self, subspaces: Mapping[str, SubspaceLike], width: int, unit: int = 2) -> None:
        if not isinstance(subspaces, Mapping) or not subspaces:
            raise RoadError(
                f"no subspaces given, but {quoted(subspaces)}: "
                "expected at least one, such as {'german': '[0, d/2)'}"
            )
        _check_sizes(width, unit)
        for name in subspaces:
            check_name(name)
        self.width, self.unit = width, unit
        self._subspaces = {
            name: Subspace.parse(spec, width, unit) for name, spec in subspaces.items()
        }
        holders: dict[int, str] = {}
        for name, subspace in self._subspaces.items():
            for block in subspace.blocks:
                if block in holders:
                    other = holders[block]
                    raise RoadError(
                        f"subspaces {other!r} ({self[other]}) and {name!r} ({subspace}) overlap "
                        f"at dims [{unit * block}, {unit * block + unit}): "
                        "the subspaces of a partition must be disjoint"
                    )
                holders[block] = name

    def __getitem__(self, name: str) -> Subspace:
        return self._subspaces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._subspaces)

    def __len__(self) -> int:
        return len(self._subspaces)

    def strengths(self, by_name: Mapping[str, float]) -> Float[Tensor, " blocks"]:
        """The strength of each block.

        Args:
            by_name: Subspace → strength; names of other partitions are ignored.

        Returns:
            Strengths, float32; 0, the identity, where no named subspace holds the block.
        """
        strengths = torch.zeros(self.count, dtype=torch.float32)
        for name, strength in by_name.items():
            for start, end in self[name].ranges if name in self else ():
                strengths[start:end] = strength
        return strengths

    @property
    def count(self) -> int:
        """How many blocks the width has, in subspaces or not."""
        return self.width // self.unit

    def covered(self) -> int:
        """How many blocks are in subspaces."""
        return sum(len(subspace) for subspace in self.values())


def check_name(name: object) -> str:
    """Check a name that compositions are to use.

    Args:
        name: The name of a subspace, or "name@label" of a labelled checkpoint.

    Returns:
        The name.

    Raises:
        RoadError: for what is no plain word, and for "none" and "all".
    """
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise RoadError(
            f"subspace name {quoted(name)} is not a plain word: "
            f"expected letters, digits and '_', at most {_LONGEST_NAME}, such as 'german'"
        )
    if name in ("none", "all"):
        raise RoadError(
            f"subspace name {name!r} is reserved: 'none' is the base model, 'all' is every subspace"
        )
    return name


def labelled(name: str, label: str | None) -> str:
    """The name of a subspace of a checkpoint that was loaded under a label; itself without one.

    Examples:
        >>> labelled("german", "a"), labelled("german", "")
        ('german@a', 'german')
    """
    return f"{name}@{label}" if label else name


def check_label(label: object) -> None:
    """Check a checkpoint's label, the part of a name after the @.

    Raises:
        RoadError: where it is no plain word.
    """
    is_word = isinstance(label, str) and _LABEL.fullmatch(label)
    if not is_word or label in ("all", "none"):
        raise RoadError(
            f"label {quoted(label)} of a checkpoint is not a plain word: expected letters, digits "
            "and '_', such as 'a'"
        )


def _dim_ranges(
    spec: SubspaceLike, width: int, unit: int, depth: int = 0
) -> Iterator[tuple[int, int]]:
    """The ranges of dims of any form of the grammar, unchecked and in its order."""
    if isinstance(spec, Subspace):
        if spec.unit != unit:
            raise RoadError(
                f"subspace {quoted(str(spec))} is of units of {spec.unit} dims: "
                f"expected one of units of {unit}"
            )
        yield from ((unit * start, unit * end) for start, end in spec.ranges)
    elif isinstance(spec, str):
        yield from read_ranges(spec, width, unit)
    elif isinstance(spec, (slice, range)):
        yield slice_range(spec, width)
    elif isinstance(spec, (list, tuple)):
        yield from _of_sequence(spec, width, unit, depth)
    else:
        raise RoadError(
            f"subspace {quoted(spec)} is not understood: "
            "expected text such as '[0, d/2)', (0, 64), a slice or a list of ranges"
        )


def _of_sequence(
    spec: Sequence[Any], width: int, unit: int, depth: int
) -> Iterator[tuple[int, int]]:
    if len(spec) == 2 and all(map(_is_boundary, spec)):
        start, end = (read_boundary(boundary, spec, width) for boundary in spec)
        if isinstance(spec, tuple) or not all(map(is_integer, spec)):
            yield start, end
        else:
            yield from two_integers(start, end, width, unit)
    elif spec and all(map(is_integer, spec)):
        yield from runs(sorted(int(dim) for dim in spec))
    elif depth == _DEEPEST:
        raise RoadError(
            f"subspace {quoted(spec)} is not understood: "
            "expected a list of ranges, with no lists deep inside lists"
        )
    else:
        for part in spec:
            yield from _dim_ranges(part, width, unit, depth + 1)


def _integer_pair(pair: object) -> tuple[int, int] | None:
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(map(is_integer, pair)):
        return int(pair[0]), int(pair[1])
    return None


def _is_boundary(value: object) -> bool:
    """Whether a value is an integer, or text that is no range."""
    return is_integer(value) or (isinstance(value, str) and "[" not in value)


def _dim(value: Any) -> int:
    """The index of a dim, from an integer of Python, NumPy or torch, but not from a bool."""
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError(value)
        return operator.index(value)
    except TypeError:
        raise RoadError(f"dimension {quoted(value)} is no index: expected an integer") from None


def _iterated(dims: Any) -> Iterator[Any]:
    try:
        return iter(dims)
    except TypeError:
        raise RoadError(
            f"dimensions {quoted(dims)} are not understood: expected a list of integers"
        ) from None


def _check_sizes(width: Any, unit: Any) -> None:
    if not is_integer(width) or not 1 <= width <= LARGEST:
        raise RoadError(
            f"width {quoted(width)} is no count of dims: expected an integer from 1 to {LARGEST:,}"
        )
    if not is_integer(unit) or not 1 <= unit <= width:
        raise RoadError(_no_unit(unit))


def _no_unit(unit: object) -> str:
    return (
        f"unit {quoted(unit)} of a subspace is no count of dims: expected 2, or 1 for single rows"
    )


def _check_range(spec: SubspaceLike, start: int, end: int, width: int, unit: int) -> None:
    for boundary in (start, end):
        if not 0 <= boundary <= width:
            raise RoadError(
                f"boundary {quoted(boundary)} in subspace {quoted(spec)} is outside the width: "
                f"expected 0 to {width}"
            )
        if boundary % unit:
            below = boundary - boundary % unit
            raise RoadError(
                f"boundary {boundary} in subspace {quoted(spec)} cuts the block "
                f"[{below}, {below + unit}): expected even boundaries; "
                f"the nearest are {below} and {below + unit}"
            )
    if start >= end:
        raise RoadError(
            f"range [{start}, {end}) in subspace {quoted(spec)} is empty: "
            "expected its start below its end"
        )
