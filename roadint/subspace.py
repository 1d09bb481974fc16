"""Subspaces: sets of whole blocks, written as ranges of dimensions; partitions: named, disjoint subspaces (paper section 4.3).

The grammar: half-open ranges over the dimensions 0 … d, `"[0, d/2)"`, with integers, `d`, fractions (`d/4`, `3d/4`, `d - 64`) and
unions (`"[0, 64) | [128, 192)"`), or every n-th block, `"blocks[::2]"` and `"blocks[1::2]"` (Python's slices). Also accepted:
`(0, 64)`, `slice(0, 64)`, `range(0, 64)`, lists of those, and lists of dimensions. Dimensions are counted in the order of the
blocks: block i is [2i, 2i + 2), whatever the pairing or the basis.

Other interventions are cut into other units than blocks of two dims: LoReFT of rank r into its r rows, one by one. The grammar is
the same, with `unit=1` and r as the width; "[0, d/2)" is the first half of the rows.
"""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from roadint.errors import RoadError

# str, slice, range, (start, end), dims, or a sequence of these
SubspaceLike = Any
_RANGE = re.compile(r"\[\s*([^\[\](),]+?)\s*,\s*([^\[\](),]+?)\s*\)")
_SLICE = re.compile(r"\s*(?:blocks|rows)\[\s*(\d*)\s*:\s*(\d*)\s*:\s*(\d+)\s*\]\s*")
_UNION = re.compile(r"\s*(\||∪|\+|,)?\s*")


@dataclass(frozen=True)
class Subspace:
    """A set of whole blocks: sorted, disjoint, half-open ranges of blocks of `unit` dims each."""

    ranges: tuple[tuple[int, int], ...]
    unit: int = 2

    @classmethod
    def parse(cls, spec: SubspaceLike, width: int, unit: int = 2) -> "Subspace":
        """Read any form of the grammar for hidden states of `width` dimensions.

        Raises RoadError where the form is unknown, a boundary is odd or outside the width, ranges overlap or nothing is left.
        """
        if isinstance(spec, Subspace):
            return spec
        dims = list(_dim_ranges(spec, width, unit))
        if not dims:
            raise RoadError(f"subspace {spec!r} is empty: expected at least one range such as '[0, d/2)'")
        for start, end in dims:
            _check_range(spec, start, end, width, unit)
        dims.sort()
        for (_, end), (start, later) in itertools.pairwise(dims):
            if start < end:
                raise RoadError(f"subspace {spec!r} overlaps itself on dims [{start}, {min(end, later)})")
        merged: list[tuple[int, int]] = []
        for start, end in dims:
            if merged and merged[-1][1] == start // unit:
                merged[-1] = (merged[-1][0], end // unit)
            else:
                merged.append((start // unit, end // unit))
        return cls(tuple(merged), unit)

    @classmethod
    def from_dims(cls, dims: Iterable[int], width: int, unit: int = 2) -> "Subspace":
        """The subspace of these dimensions, in any order; they must make up whole blocks (RoadError)."""
        return cls.parse([range(start, end) for start, end in _runs(sorted({int(dim) for dim in dims}))], width, unit)

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
        if not subspaces:
            raise RoadError("no subspaces given: expected at least one, such as {'german': '[0, d/2)'}")
        for name in subspaces:
            check_name(name)
        self.width, self.unit = width, unit
        self._subspaces = {name: Subspace.parse(spec, width, unit) for name, spec in subspaces.items()}
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
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(@\w+)?", name):
        raise RoadError(f"subspace name {name!r} is not a plain word: expected letters, digits and '_', such as 'german'")
    if name in ("none", "all"):
        raise RoadError(f"subspace name {name!r} is reserved: 'none' is the base model, 'all' is every subspace")
    return name


def _dim_ranges(spec: SubspaceLike, width: int, unit: int) -> Iterator[tuple[int, int]]:
    if isinstance(spec, str) and (every := _SLICE.fullmatch(spec)):
        start, end, step = (int(number) if number else None for number in every.groups())
        if not step:
            raise RoadError(f"subspace {spec!r} has step 0: expected at least 1")
        for block in range(width // unit)[start:end:step]:
            yield unit * block, unit * block + unit
    elif isinstance(spec, str):
        yield from _parse_text(spec, width)
    elif isinstance(spec, (slice, range)):
        if spec.step not in (None, 1):
            raise RoadError(f"subspace {spec!r} has step {spec.step}: expected whole blocks, so a step of 1")
        start, end = (spec.start or 0), (width if spec.stop is None else spec.stop)
        yield (start, end) if isinstance(spec, range) else spec.indices(width)[:2]
    elif isinstance(spec, Sequence) and spec and all(isinstance(item, int) for item in spec):
        if len(spec) == 2 and spec[1] != spec[0] + 1:
            yield spec[0], spec[1]
        else:
            yield from _runs(sorted(spec))
    elif isinstance(spec, Sequence):
        for part in spec:
            yield from _dim_ranges(part, width, unit)
    else:
        raise RoadError(f"subspace {spec!r} is not understood: expected text such as '[0, d/2)', a slice or a list of ranges")


def _runs(ordered: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for index, dim in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != dim + 1:
            yield ordered[start], dim + 1
            start = index + 1


def _parse_text(text: str, width: int) -> Iterator[tuple[int, int]]:
    position, first = 0, True
    text = text.strip()
    while position < len(text):
        joint = _UNION.match(text, position)
        found = _RANGE.match(text, joint.end() if joint else position)
        if found is None or joint is None or (first == bool(joint.group(1))):
            raise RoadError(
                f"subspace {text!r} is not understood at {text[position:]!r}: expected half-open ranges joined by '|', "
                "such as '[0, d/2)' or '[0, 64) | [128, 192)'"
            )
        yield _endpoint(found.group(1), width, text), _endpoint(found.group(2), width, text)
        position, first = found.end(), False


def _endpoint(text: str, width: int, whole: str) -> int:
    try:
        value = _evaluate(ast.parse(re.sub(r"(\d)\s*d\b", r"\1*d", text), mode="eval").body, width)
    except (SyntaxError, TypeError, ZeroDivisionError):
        raise RoadError(
            f"boundary {text!r} in subspace {whole!r} is not understood: expected an integer, d, or a fraction such as d/2 or 3d/4"
        ) from None
    if value.denominator != 1:
        raise RoadError(f"boundary {text!r} in subspace {whole!r} is {float(value):.2f} at width {width}: expected a whole number")
    return int(value)


def _evaluate(node: ast.expr, width: int) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.Name(id="d"):
            return Fraction(width)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, width)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _evaluate(left, width) + _evaluate(right, width)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _evaluate(left, width) - _evaluate(right, width)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _evaluate(left, width) * _evaluate(right, width)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _evaluate(left, width) / _evaluate(right, width)
    raise TypeError(ast.dump(node))


def _check_range(spec: SubspaceLike, start: int, end: int, width: int, unit: int) -> None:
    for boundary in (start, end):
        if boundary % unit:
            below, above = boundary - 1, boundary + 1
            raise RoadError(
                f"boundary {boundary} in subspace {spec!r} cuts the block [{below}, {above}): expected even boundaries; "
                f"the nearest are {below} and {above}"
            )
        if not 0 <= boundary <= width:
            raise RoadError(f"boundary {boundary} in subspace {spec!r} is outside the width: expected 0 to {width}")
    if start >= end:
        raise RoadError(f"range [{start}, {end}) in subspace {spec!r} is empty: expected its start below its end")
