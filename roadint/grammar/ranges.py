"""Ranges of dims, from text, slices and integers, and as text again.

The text is `"[0, d/2) | [3d/4, d)"`, half-open ranges over the dims 0 … d, with integers, `d`,
fractions (`d/4`, `3d/4`, `d - 64`) and unions; or `"blocks[1::2]"`, every n-th block, as in
Python's slices, but without indices beyond the width.
"""

import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from numbers import Integral
from typing import Any, TypeGuard

from roadint.errors import RoadError, quoted
from roadint.grammar.scanner import check_length, scan

LARGEST = 999_999_999  # a dimension
Ranges = Sequence[tuple[int, int]]  # start and end, half-open

_RANGE = re.compile(r"\[([^\[\](),]*),([^\[\](),]*)\)")
_UNION = re.compile(r"\s*([|∪+,]?)\s*")
_EVERY_NTH = re.compile(r"(blocks|rows)\[([^\[\]:]*):([^\[\]:]*):([^\[\]:]*)\]")
_EXPRESSION = re.compile(r"\s+|[0-9]{1,9}|d|[-+*/]")
_INTEGER = re.compile(r"[0-9]{1,9}")
_LONGEST_BOUNDARY = 100  # characters


def read_ranges(text: str, width: int, unit: int) -> Iterator[tuple[int, int]]:
    """Read ranges of dims.

    Args:
        text: A text of this grammar.
        width: What `d` stands for, in dims.
        unit: Dims in a block.

    Yields:
        Start and end of each range in dims, in the order of the text; they may overlap, cut blocks
        or lie outside of the width.

    Raises:
        RoadError: for text that is not in the grammar.

    Examples:
        >>> list(read_ranges("[0, d/4) | [d - 2, d)", 16, 2))
        [(0, 4), (14, 16)]
        >>> list(read_ranges("blocks[::4]", 16, 2))
        [(0, 2), (8, 10)]
    """
    check_length("subspace", text, 4_000 + 20 * width)  # enough for single blocks, one by one
    text = text.strip()
    every_nth = _EVERY_NTH.fullmatch(text)
    return _every_nth(every_nth, text, width, unit) if every_nth else _union(text, width)


def write_ranges(ranges: Ranges, unit: int) -> str:
    """The text of ranges of blocks.

    Args:
        ranges: Starts and ends in blocks, ordered and apart.
        unit: Dims in a block.

    Returns:
        The text: in dims or, where possible, every n-th block.

    Examples:
        >>> write_ranges([(0, 2), (4, 6)], 2)
        '[0, 4) | [8, 12)'
        >>> write_ranges([(1, 2), (3, 4), (5, 6)], 2)
        'blocks[1:6:2]'
    """
    starts = [start for start, _ in ranges]
    steps = {later - start for start, later in itertools.pairwise(starts)}
    if len(starts) > 2 and len(steps) == 1 and all(end == start + 1 for start, end in ranges):
        blocks = "blocks" if unit == 2 else "rows"
        return f"{blocks}[{starts[0]}:{starts[-1] + 1}:{steps.pop()}]"
    return " | ".join(f"[{unit * start}, {unit * end})" for start, end in ranges)


def write_slice(dims: slice) -> str:
    """The text of a slice of dims, for any width.

    Args:
        dims: The slice.

    Returns:
        Its text; its repr where it has a step.

    Examples:
        >>> [write_slice(slice(0, 16)), write_slice(slice(8, None)), write_slice(slice(-8, None))]
        ['[0, 16)', '[8, d)', '[d - 8, d)']
    """
    if dims.step not in (None, 1):
        return quoted(dims)
    start, stop = (
        f"d - {-end}" if isinstance(end, int) and end < 0 else f"{end}"
        for end in (dims.start or 0, "d" if dims.stop is None else dims.stop)
    )
    return f"[{start}, {stop})"


def read_boundary(value: Any, whole: object, width: int) -> int:
    """Read a boundary of a range.

    Args:
        value: An integer, or text such as "3d/4".
        whole: The whole subspace, for messages.
        width: What `d` stands for, in dims.

    Returns:
        The boundary, in dims.

    Raises:
        RoadError: for anything else, and for fractions of a dim.

    Examples:
        >>> read_boundary("3d/4", "[0, 3d/4)", 64)
        48
    """
    if is_integer(value) and abs(value) <= LARGEST:
        return int(value)
    text = value.strip() if isinstance(value, str) else ""
    tokens, understood = scan(_EXPRESSION, text[: _LONGEST_BOUNDARY + 1])
    try:
        if understood < len(text) or understood > _LONGEST_BOUNDARY:
            raise ValueError(text)
        number = _sum(_with_products(tokens), width)
    except (ValueError, IndexError, ZeroDivisionError):
        raise RoadError(
            f"boundary {quoted(text or value)} in subspace {quoted(whole)} is not understood: "
            f"expected an integer up to {LARGEST:,}, d, or a fraction such as d/2 or 3d/4"
        ) from None
    if number.denominator != 1:
        raise RoadError(
            f"boundary {quoted(text)} in subspace {quoted(whole)} is {float(number):.2f} "
            f"at width {width}: expected a whole number"
        )
    return int(number)


def runs(ordered: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ordered integers as half-open ranges.

    Examples:
        >>> list(runs([0, 1, 2, 6]))
        [(0, 3), (6, 7)]
    """
    start = 0
    for index, dim in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != dim + 1:
            yield ordered[start], dim + 1
            start = index + 1


def slice_range(spec: slice | range, width: int) -> tuple[int, int]:
    """The range of a slice of dims.

    Args:
        spec: The slice, with boundaries as in `read_boundary`; negative ones count from the end.
        width: The width, in dims.

    Returns:
        Start and end, in dims.

    Raises:
        RoadError: for a step.
    """
    if spec.step not in (None, 1):
        raise RoadError(
            f"subspace {quoted(spec)} has step {quoted(spec.step)}: "
            "expected whole blocks, so a step of 1"
        )
    start = read_boundary(0 if spec.start is None else spec.start, spec, width)
    end = read_boundary(width if spec.stop is None else spec.stop, spec, width)
    if isinstance(spec, slice):  # negative ones count from the end
        start = start + width if -width <= start < 0 else start
        end = end + width if -width <= end < 0 else end
    return start, end


def two_integers(first: int, second: int, width: int, unit: int) -> Iterator[tuple[int, int]]:
    """What a list of two integers means: a range, or two dims.

    Args:
        first: The first integer.
        second: The second integer.
        width: The width, in dims.
        unit: Dims in a block.

    Yields:
        Start and end of each range.

    Raises:
        RoadError: where both are possible.
    """
    if unit == 1 and 0 <= first < second < width:
        raise RoadError(
            f"subspace [{first}, {second}] has two meanings: expected ({first}, {second}) or "
            f"'[{first}, {second})' for the range, "
            f"'[{first}, {first + 1}) | [{second}, {second + 1})' for the two dimensions"
        )
    if unit == 2 and abs(second - first) == 1:  # no range of whole blocks
        yield from runs(sorted((first, second)))
    else:
        yield first, second


def is_integer(value: object) -> TypeGuard[Any]:
    """Whether a value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _every_nth(match: re.Match[str], text: str, width: int, unit: int) -> Iterator[tuple[int, int]]:
    if match[1] == "rows" and unit == 2:
        raise RoadError(
            f"subspace {quoted(text)} counts rows, but blocks are chosen here: expected 'blocks[…]'"
        )
    parts = [part.strip() for part in match.groups()[1:]]
    if not parts[2] or not all(_INTEGER.fullmatch(part) for part in parts if part):
        raise RoadError(
            f"subspace {quoted(text)} is not understood: "
            "expected integers, such as 'blocks[::2]' or 'blocks[1:9:2]'"
        )
    blocks = width // unit
    start, end, step = (
        int(part) if part else default for part, default in zip(parts, (0, blocks, 1), strict=True)
    )
    if not step:
        raise RoadError(f"subspace {quoted(text)} has step 0: expected at least 1")
    if max(start, end) > blocks:
        raise RoadError(
            f"subspace {quoted(text)} is outside the width: "
            f"expected indices up to {blocks} at width {width}"
        )
    for block in range(start, end, step):
        yield unit * block, unit * block + unit


def _union(text: str, width: int) -> Iterator[tuple[int, int]]:
    offset, first = 0, True
    while offset < len(text):
        joint = _UNION.match(text, offset)
        match = _RANGE.match(text, joint.end() if joint else offset)
        if match is None or joint is None or (first == bool(joint[1])):
            raise RoadError(
                f"subspace {quoted(text)} is not understood at {quoted(text[offset:])}: "
                "expected half-open ranges joined by '|', "
                "such as '[0, d/2)' or '[0, 64) | [128, 192)'"
            )
        yield read_boundary(match[1], text, width), read_boundary(match[2], text, width)
        offset, first = match.end(), False


def _with_products(tokens: Sequence[tuple[int, str]]) -> deque[str]:
    """The tokens of a boundary, with 3d as 3 * d."""
    words: deque[str] = deque()
    for _, token in tokens:
        if words and token == "d" and words[-1].isdigit():
            words.append("*")
        words.append(token)
    return words


def _sum(words: deque[str], width: int) -> Fraction:
    """All words, as a sum of products; ValueError, IndexError or ZeroDivisionError otherwise."""
    value = _product(words, width)
    while words:
        sign = words.popleft()
        if sign not in "+-":
            raise ValueError(sign)
        value += _product(words, width) if sign == "+" else -_product(words, width)
    return value


def _product(words: deque[str], width: int) -> Fraction:
    value = _factor(words, width)
    while words and words[0] in "*/":
        sign = words.popleft()
        value = value * _factor(words, width) if sign == "*" else value / _factor(words, width)
    return value


def _factor(words: deque[str], width: int) -> Fraction:
    word = words.popleft()
    sign = 1
    if word == "-":
        sign, word = -1, words.popleft()
    return sign * Fraction(width if word == "d" else int(word))
