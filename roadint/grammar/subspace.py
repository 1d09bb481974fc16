"""Subspaces: sets of whole blocks, written as ranges of dimensions; partitions: named, disjoint subspaces (paper section 4.3).

The grammar: half-open ranges over the dimensions 0 … d, `"[0, d/2)"`, with integers, `d`, fractions (`d/4`, `3d/4`, `d - 64`) and
unions (`"[0, 64) | [128, 192)"`), or every n-th block, `"blocks[::2]"` and `"blocks[1::2]"` (as Python's slices, but for indices
that there are none of). Also accepted: tuples of a start and an end, `(0, 64)` and `(0, "d/2")`, `slice(0, 64)`, `range(0, 64)`,
lists of those, and lists of dimensions. A list of two integers is refused where it could be both, a range or two dimensions.
Dimensions are counted in the order of the blocks: block i is [2i, 2i + 2), whatever the pairing or the basis.

Other interventions are cut into other units than blocks of two dims: LoReFT of rank r into its r rows, one by one. The grammar is
the same, with `unit=1` and r as the width; "[0, d/2)" is the first half of the rows.
"""

import itertools
import operator
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from roadint.errors import RoadError, quoted
from roadint.grammar.scanner import check_length, scan

# str, slice, range, (start, end), dims, a sequence of these, or a Subspace
SubspaceLike = Any
_RANGE = re.compile(r"\[([^\[\](),]*),([^\[\](),]*)\)")
_UNION = re.compile(r"\s*([|∪+,]?)\s*")
_EVERY = re.compile(r"(blocks|rows)\[([^\[\]:]*):([^\[\]:]*):([^\[\]:]*)\]")
_EXPRESSION = re.compile(r"\s+|[0-9]{1,9}|d|[-+*/]")
_INTEGER = re.compile(r"[0-9]{1,9}")
_NAME = re.compile(r"[^\W\d]\w*(@\w+)?")
_LARGEST = 999_999_999  # a dimension
_BOUNDARY = 100  # characters
_NAMED = 200  # characters
_DEEPEST = 4  # lists in lists


@dataclass(frozen=True)
class Subspace:
    """A set of whole blocks: sorted, disjoint, half-open ranges of blocks of `unit` dims each; ranges that touch become one.

    Its text, `str(subspace)`, is an expression of the grammar that means the same. Raises RoadError for ranges that are none.
    """

    ranges: tuple[tuple[int, int], ...]
    unit: int = 2

    def __post_init__(self) -> None:
        if not _is_integer(self.unit) or self.unit < 1:
            raise RoadError(
                f"unit {quoted(self.unit)} of a subspace is no count of dims: expected 2, or 1 for single rows"
            )
        merged: list[tuple[int, int]] = []
        for each in self.ranges if isinstance(self.ranges, (tuple, list)) else (self.ranges,):
            pair = (
                tuple(each)
                if isinstance(each, (tuple, list))
                and len(each) == 2
                and all(map(_is_integer, each))
                else (0, 0)
            )
            start, end = map(int, pair)
            last = merged[-1][1] if merged else 0
            if not last <= start < end <= _LARGEST // self.unit:
                raise RoadError(
                    f"range {quoted(each)} in Subspace({quoted(self.ranges)}) is none: expected (start, end) in blocks, "
                    f"start below end, ranges in order and apart; Subspace.parse reads text such as '[0, d/2)'"
                )
            if merged and last == start:
                start = merged.pop()[0]
            merged.append((start, end))
        if not merged:
            raise RoadError(
                "subspace Subspace(()) is empty: expected at least one range of blocks, such as ((0, 8),)"
            )
        object.__setattr__(self, "ranges", tuple(merged))

    @classmethod
    def parse(cls, spec: SubspaceLike, width: int, unit: int = 2) -> "Subspace":
        """Read any form of the grammar for hidden states of `width` dimensions; a Subspace must have that unit, and fit.

        Raises RoadError where the form is unknown or has two meanings, a boundary is odd or outside the width, ranges overlap or
        nothing is left.
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
        """The subspace of these dimensions, in any order; they must make up whole blocks (RoadError)."""
        _check_sizes(width, unit)
        chosen: set[int] = set()
        for dim in _each(dims):
            if not 0 <= _dim(dim) < width:  # at once: there may be no end of them
                raise RoadError(
                    f"dimension {quoted(dim)} is outside the width: expected 0 to {width - 1}"
                )
            chosen.add(_dim(dim))
        return cls.parse([range(start, end) for start, end in _runs(sorted(chosen))], width, unit)

    @property
    def blocks(self) -> list[int]:
        """The indices of the blocks, ascending."""
        return [block for start, end in self.ranges for block in range(start, end)]

    def __len__(self) -> int:
        return sum(end - start for start, end in self.ranges)

    def __str__(self) -> str:
        starts = [start for start, _ in self.ranges]
        steps = {later - start for start, later in itertools.pairwise(starts)}
        if len(starts) > 2 and len(steps) == 1 and len(self) == len(starts):
            return f"{'blocks' if self.unit == 2 else 'rows'}[{starts[0]}:{starts[-1] + 1}:{steps.pop()}]"
        return " | ".join(f"[{self.unit * start}, {self.unit * end})" for start, end in self.ranges)


class Partition(Mapping[str, Subspace]):
    """Named, disjoint subspaces of one site, in the order given. They need not cover the width."""

    def __init__(self, subspaces: Mapping[str, SubspaceLike], width: int, unit: int = 2) -> None:
        """Raises RoadError where there is none, a name is no plain word, or two subspaces share a block."""
        if not isinstance(subspaces, Mapping) or not subspaces:
            raise RoadError(
                f"no subspaces given, but {quoted(subspaces)}: expected at least one, such as {{'german': '[0, d/2)'}}"
            )
        _check_sizes(width, unit)
        for name in subspaces:
            check_name(name)
        self.width, self.unit = width, unit
        self._subspaces = {
            name: Subspace.parse(spec, width, unit) for name, spec in subspaces.items()
        }
        owner: dict[int, str] = {}
        for name, subspace in self._subspaces.items():
            for block in subspace.blocks:
                if block in owner:
                    raise RoadError(
                        f"subspaces {owner[block]!r} ({self[owner[block]]}) and {name!r} ({subspace}) overlap at dims "
                        f"[{unit * block}, {unit * block + unit}): the subspaces of a partition must be disjoint"
                    )
                owner[block] = name

    def __getitem__(self, name: str) -> Subspace:
        return self._subspaces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._subspaces)

    def __len__(self) -> int:
        return len(self._subspaces)

    def strengths(self, by_name: Mapping[str, float]) -> Tensor:
        """[blocks] float32: each block's strength; 0 (the identity) where no named subspace holds it."""
        strengths = torch.zeros(self.count)
        for name, strength in by_name.items():
            for start, end in self[name].ranges if name in self else ():
                strengths[start:end] = strength
        return strengths

    @property
    def count(self) -> int:
        """How many blocks there are, held by some subspace or not."""
        return self.width // self.unit

    def covered(self) -> int:
        """How many blocks belong to some subspace."""
        return sum(len(subspace) for subspace in self.values())


def check_name(name: object) -> str:
    """Return `name`; raise RoadError where it can't be used in a composition. "name@checkpoint" is of a loaded checkpoint."""
    if not isinstance(name, str) or len(name) > _NAMED or not _NAME.fullmatch(name):
        raise RoadError(
            f"subspace name {quoted(name)} is not a plain word: "
            f"expected letters, digits and '_', at most {_NAMED}, such as 'german'"
        )
    if name in ("none", "all"):
        raise RoadError(
            f"subspace name {name!r} is reserved: 'none' is the base model, 'all' is every subspace"
        )
    return name


def _dim_ranges(
    spec: SubspaceLike, width: int, unit: int, depth: int = 0
) -> Iterator[tuple[int, int]]:
    """The ranges of dims that a form of the grammar names, unchecked and in its own order."""
    if isinstance(spec, Subspace):
        if spec.unit != unit:
            raise RoadError(
                f"subspace {quoted(str(spec))} is of units of {spec.unit} dims: expected one of units of {unit}"
            )
        yield from ((unit * start, unit * end) for start, end in spec.ranges)
    elif isinstance(spec, str):
        check_length(
            "subspace", spec, 4_000 + 20 * width
        )  # as long as single blocks, one by one, can be
        text = spec.strip()
        every = _EVERY.fullmatch(text)
        yield from _every(every, text, width, unit) if every else _parse_text(text, width)
    elif isinstance(spec, (slice, range)):
        yield _of_slice(spec, width)
    elif isinstance(spec, (list, tuple)):
        yield from _of_sequence(spec, width, unit, depth)
    else:
        raise RoadError(
            f"subspace {quoted(spec)} is not understood: expected text such as '[0, d/2)', (0, 64), a slice or a list of ranges"
        )


def _of_sequence(
    spec: Sequence[Any], width: int, unit: int, depth: int
) -> Iterator[tuple[int, int]]:
    if len(spec) == 2 and all(map(_is_boundary, spec)):
        start, end = (_boundary(each, spec, width) for each in spec)
        if isinstance(spec, tuple) or not all(map(_is_integer, spec)):
            yield start, end
        else:
            yield from _of_two(start, end, width, unit)
    elif spec and all(map(_is_integer, spec)):
        yield from _runs(sorted(int(dim) for dim in spec))
    elif depth == _DEEPEST:
        raise RoadError(
            f"subspace {quoted(spec)} is not understood: expected a list of ranges, with no lists deep inside lists"
        )
    else:
        for part in spec:
            yield from _dim_ranges(part, width, unit, depth + 1)


def _of_two(first: int, second: int, width: int, unit: int) -> Iterator[tuple[int, int]]:
    """A list of two integers: the range, or the two dimensions, where it can't be both."""
    if unit == 1 and 0 <= first < second < width:
        raise RoadError(
            f"subspace [{first}, {second}] has two meanings: expected ({first}, {second}) or '[{first}, {second})' for the range, "
            f"'[{first}, {first + 1}) | [{second}, {second + 1})' for the two dimensions"
        )
    if unit == 2 and abs(second - first) == 1:  # no range of whole blocks
        yield from _runs(sorted((first, second)))
    else:
        yield first, second


def _runs(ordered: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for index, dim in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != dim + 1:
            yield ordered[start], dim + 1
            start = index + 1


def _of_slice(spec: slice | range, width: int) -> tuple[int, int]:
    if spec.step not in (None, 1):
        raise RoadError(
            f"subspace {quoted(spec)} has step {quoted(spec.step)}: expected whole blocks, so a step of 1"
        )
    start = _boundary(0 if spec.start is None else spec.start, spec, width)
    end = _boundary(width if spec.stop is None else spec.stop, spec, width)
    if isinstance(spec, slice):  # negative ones count from the end
        start, end = (place + width if -width <= place < 0 else place for place in (start, end))
    return start, end


def _every(found: re.Match[str], text: str, width: int, unit: int) -> Iterator[tuple[int, int]]:
    """`blocks[start:end:step]`."""
    if found[1] == "rows" and unit == 2:
        raise RoadError(
            f"subspace {quoted(text)} counts rows, but blocks are chosen here: expected 'blocks[…]'"
        )
    parts = [part.strip() for part in found.groups()[1:]]
    if not parts[2] or not all(_INTEGER.fullmatch(part) for part in parts if part):
        raise RoadError(
            f"subspace {quoted(text)} is not understood: expected integers, such as 'blocks[::2]' or 'blocks[1:9:2]'"
        )
    blocks = width // unit
    start, end, step = (
        int(part) if part else default for part, default in zip(parts, (0, blocks, 1), strict=True)
    )
    if not step:
        raise RoadError(f"subspace {quoted(text)} has step 0: expected at least 1")
    if max(start, end) > blocks:
        raise RoadError(
            f"subspace {quoted(text)} is outside the width: expected indices up to {blocks} at width {width}"
        )
    for block in range(start, end, step):
        yield unit * block, unit * block + unit


def _parse_text(text: str, width: int) -> Iterator[tuple[int, int]]:
    place, first = 0, True
    while place < len(text):
        joint = _UNION.match(text, place)
        found = _RANGE.match(text, joint.end() if joint else place)
        if found is None or joint is None or (first == bool(joint[1])):
            raise RoadError(
                f"subspace {quoted(text)} is not understood at {quoted(text[place:])}: expected half-open ranges joined by '|', "
                "such as '[0, d/2)' or '[0, 64) | [128, 192)'"
            )
        yield _boundary(found[1], text, width), _boundary(found[2], text, width)
        place, first = found.end(), False


def _dim(value: Any) -> int:
    """The index of a dimension, from an integer, NumPy's and torch's among them; a flag of a mask is none."""
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError(value)
        return operator.index(value)
    except TypeError:
        raise RoadError(f"dimension {quoted(value)} is no index: expected an integer") from None


def _each(dims: Any) -> Iterator[Any]:
    try:
        return iter(dims)
    except TypeError:
        raise RoadError(
            f"dimensions {quoted(dims)} are not understood: expected a list of integers"
        ) from None


def _check_sizes(width: Any, unit: Any) -> None:
    if not _is_integer(width) or not 1 <= width <= _LARGEST:
        raise RoadError(
            f"width {quoted(width)} is no count of dims: expected an integer from 1 to {_LARGEST:,}"
        )
    if not _is_integer(unit) or not 1 <= unit <= width:
        raise RoadError(
            f"unit {quoted(unit)} of a subspace is no count of dims: expected 2, or 1 for single rows"
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_boundary(value: object) -> bool:
    """An integer, or text that is no range by itself."""
    return _is_integer(value) or (isinstance(value, str) and "[" not in value)


def _boundary(value: Any, whole: object, width: int) -> int:
    """A boundary, from an integer or from text such as "3d/4"."""
    if _is_integer(value) and abs(value) <= _LARGEST:
        return int(value)
    text = value.strip() if isinstance(value, str) else ""
    tokens, understood = scan(_EXPRESSION, text[: _BOUNDARY + 1])
    try:
        if understood < len(text) or understood > _BOUNDARY:
            raise ValueError(text)
        number = _sum(_with_products(tokens), width)
    except (ValueError, IndexError, ZeroDivisionError):
        raise RoadError(
            f"boundary {quoted(text or value)} in subspace {quoted(whole)} is not understood: "
            f"expected an integer up to {_LARGEST:,}, d, or a fraction such as d/2 or 3d/4"
        ) from None
    if number.denominator != 1:
        raise RoadError(
            f"boundary {quoted(text)} in subspace {quoted(whole)} is {float(number):.2f} at width {width}: expected a whole number"
        )
    return int(number)


def _with_products(tokens: Sequence[tuple[int, str]]) -> deque[str]:
    """The tokens of a boundary, 3d as 3 * d."""
    found: deque[str] = deque()
    for _, token in tokens:
        if found and token == "d" and found[-1].isdigit():
            found.append("*")
        found.append(token)
    return found


def _sum(tokens: deque[str], width: int) -> Fraction:
    """All tokens, as a sum of products. Raises ValueError, IndexError or ZeroDivisionError where they are none."""
    value = _product(tokens, width)
    while tokens:
        sign = tokens.popleft()
        if sign not in "+-":
            raise ValueError(sign)
        value += _product(tokens, width) if sign == "+" else -_product(tokens, width)
    return value


def _product(tokens: deque[str], width: int) -> Fraction:
    value = _factor(tokens, width)
    while tokens and tokens[0] in "*/":
        sign = tokens.popleft()
        value = value * _factor(tokens, width) if sign == "*" else value / _factor(tokens, width)
    return value


def _factor(tokens: deque[str], width: int) -> Fraction:
    token = tokens.popleft()
    if token == "-":
        token = tokens.popleft()
        return -Fraction(width if token == "d" else int(token))
    return Fraction(width if token == "d" else int(token))


def _check_range(spec: SubspaceLike, start: int, end: int, width: int, unit: int) -> None:
    for boundary in (start, end):
        if not 0 <= boundary <= width:
            raise RoadError(
                f"boundary {quoted(boundary)} in subspace {quoted(spec)} is outside the width: expected 0 to {width}"
            )
        if boundary % unit:
            below = boundary - boundary % unit
            raise RoadError(
                f"boundary {boundary} in subspace {quoted(spec)} cuts the block [{below}, {below + unit}): "
                f"expected even boundaries; the nearest are {below} and {below + unit}"
            )
    if start >= end:
        raise RoadError(
            f"range [{start}, {end}) in subspace {quoted(spec)} is empty: expected its start below its end"
        )
