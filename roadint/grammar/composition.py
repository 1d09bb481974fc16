"""Compositions: expressions over subspace names, `a`, `a + b`, `0.5*a - b`, `all`, `none`."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, Final

from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.grammar.scanner import check_length, scan

_TOKEN = re.compile(
    r"\s+|[+*-]|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[^\W\d]\w*(?:@\w+)?"
)
_LONGEST = 16_000  # characters of an expression

STRONGEST: Final = 1000.0
"""The largest size of a strength: beyond it, float32 does not hold the angle s·θ to a thousandth of
a turn."""


@dataclass(frozen=True)
class Composition:
    """Names of subspaces with strengths; without terms it is the identity, the base model.

    Its text, `str(composition)`, is an expression that means the same, to the last digit.

    Args:
        terms: Names and strengths, each name once, in the order of the names.

    Examples:
        >>> composition = Composition.parse("english + 0.5*german", ["german", "english"])
        >>> composition.terms
        (('german', 0.5), ('english', 1.0))
        >>> str(composition)
        '0.5*german + english'
        >>> Composition.parse({"german": 0.5, "english": 1}, ["german", "english"]) == composition
        True
        >>> str(Composition.parse(None, ["german", "english"]))
        'none'
    """

    terms: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: "CompositionLike", names: Iterable[str]) -> "Composition":
        """Read an expression.

        Args:
            text: An expression. None and "none" are the identity, "all" is every name at strength
                1. "german@a" is a subspace of the checkpoint that was loaded as a; "a" alone is all
                of that checkpoint's subspaces. A mapping of names to strengths (any real numbers)
                means the same. Strengths of a repeated name add up; zeros are dropped.
            names: All known names, in the order of the terms.

        Returns:
            The composition.

        Raises:
            RoadError: for an unknown name, text that is no such expression or has over 16,000
                characters, and a sum of strengths that is not finite or above 1,000 in size.
        """
        return _parse(text, _order(names))

    def __str__(self) -> str:
        text = ""
        for name, strength in self.terms:
            factor = "" if abs(strength) == 1 else f"{abs(strength)!r}".removesuffix(".0") + "*"
            if text:
                text += f" {'-' if strength < 0 else '+'} {factor}{name}"
            else:
                text = f"{'-' if strength < 0 else ''}{factor}{name}"
        return text or "none"


CompositionLike = Composition | str | Mapping[str, float] | None
ALL: Final = "all"


def parse_rows(
    compose: CompositionLike | Sequence[CompositionLike], rows: int, names: Sequence[str]
) -> list[Composition]:
    """Read the compositions of a batch.

    Args:
        compose: A list or tuple of compositions, one a row; anything else is one for all rows.
        rows: The number of rows.
        names: All known names.

    Returns:
        One composition for each row.

    Raises:
        RoadError: for another number of compositions, and as Composition.parse.

    Examples:
        >>> [str(row) for row in parse_rows([None, "all"], 2, ["a", "b"])]
        ['none', 'a + b']
    """
    order = _order(names)
    if not isinstance(compose, (list, tuple)):
        return [_parse(compose, order)] * rows
    if len(compose) != rows:
        raise RoadError(
            f"{len(compose)} compositions for {rows} rows: "
            "expected one a row, or a single one for all"
        )
    parsed: dict[str, Composition] = {}
    for text in compose:
        if isinstance(text, str) and text not in parsed:
            parsed[text] = _parse(text, order)
    return [parsed[row] if isinstance(row, str) else _parse(row, order) for row in compose]


def check_strength(name: str, strength: float) -> None:
    """Refuse a strength at which no rotation can be computed.

    Args:
        name: The name of the subspace or adapter, for the message.
        strength: The strength.

    Raises:
        RoadError: where it is not finite, or larger than STRONGEST in size.
    """
    if not math.isfinite(strength):
        raise _no_number(name, strength)
    if abs(strength) > STRONGEST:
        raise RoadError(
            f"strength {strength!r} of {quoted(name)} is too large: expected at most "
            f"{STRONGEST:,.0f} in size, above which float32 loses the angle"
        )


def _order(names: Iterable[str]) -> dict[str, int]:
    """The index of every name."""
    try:
        listed = None if isinstance(names, str) else iter(names)
    except TypeError:  # arrays without a dimension say that they are iterable
        listed = None
    if listed is None:
        raise RoadError(
            f"names {quoted(names)} are not understood: "
            "expected those of the subspaces, such as ['german', 'english']"
        )
    order: dict[str, int] = {}
    for name in listed:
        if not isinstance(name, str):
            raise RoadError(
                f"name {quoted(name)} of a subspace is no text: expected one such as 'german'"
            )
        order.setdefault(name, len(order))
    return order


def _parse(written: Any, order: Mapping[str, int]) -> Composition:
    sums: dict[str, float] = {}
    for name, strength in _written_terms(written):
        if not isinstance(name, str):
            raise RoadError(
                f"name {quoted(name)} in composition {quoted(written)} is no text: "
                f"expected one of {listing(order)}"
            )
        sums[name] = sums.get(name, 0.0) + _real(name, strength)
    strengths: dict[str, float] = {}
    for name, strength in sums.items():
        meant = _meant(name, order)
        if not meant and name != ALL:
            text = quoted(str(written) if isinstance(written, Composition) else written)
            raise RoadError(
                f"unknown subspace {quoted(name)} in composition {text}: "
                f"expected one of {listing(order)}{did_you_mean(name, order)}"
            )
        for subspace in meant:
            strengths[subspace] = strengths.get(subspace, 0.0) + strength
    for name, strength in strengths.items():
        check_strength(name, strength)
    acting = [name for name, strength in strengths.items() if strength]
    acting.sort(key=order.__getitem__)
    return Composition(tuple((name, strengths[name]) for name in acting))


def _written_terms(written: Any) -> Iterable[tuple[Any, Any]]:
    """The terms before names are looked up, with repeated names."""
    if written is None:
        return ()
    if isinstance(written, str):
        check_length("composition", written, _LONGEST)
        return () if written.strip() == "none" else _parse_terms(written)
    if isinstance(written, Mapping):
        return written.items()
    if isinstance(written, Composition):
        terms = written.terms
        if isinstance(terms, (tuple, list)) and all(
            isinstance(term, (tuple, list)) and len(term) == 2 for term in terms
        ):
            return terms
    raise RoadError(
        f"composition {quoted(written)} is not understood: "
        "expected text such as 'german + 0.5*english', or None"
    )


def _meant(name: str, order: Mapping[str, int]) -> list[str]:
    """The subspaces that a name means: one, all of a checkpoint, or all."""
    if name == ALL:
        return list(order)
    if name in order:
        return [name]
    return [subspace for subspace in order if subspace.partition("@")[2] == name]


def _real(name: str, strength: Any) -> float:
    """A number, or a scalar of NumPy or torch, as a float; infinite where text overflows."""
    try:
        if (
            not isinstance(strength, Real)
            and getattr(strength, "shape", None) == ()
            and not getattr(strength, "requires_grad", 0)
        ):
            strength = strength.item()
        if isinstance(strength, Real) and not isinstance(strength, bool):
            return float(strength)
    except Exception:  # a number that no float holds, or an object of another library
        raise _no_number(name, strength) from None
    raise _no_number(name, strength)


def _no_number(name: str, strength: Any) -> RoadError:
    return RoadError(
        f"strength {quoted(strength)} of {quoted(name)} is no finite number: "
        "expected one such as 0.5 or -1"
    )


@lru_cache(maxsize=512)  # a training step asks for the same few, again and again
def _parse_terms(text: str) -> tuple[tuple[str, float], ...]:
    """Read `[±] [number *] name`, with a sign before every term but the first."""
    tokens, understood = scan(_TOKEN, text)
    words = [word for _, word in tokens] + [""] * 4  # so that looking ahead finds something
    terms: list[tuple[str, float]] = []
    index = 0
    while index < len(tokens) or not terms:
        start = index
        sign = words[index] if words[index] in ("+", "-") else ""
        index += bool(sign)
        number = 1.0
        if words[index + 1] == "*" and words[index][0] in ".0123456789":
            number = float(words[index])
            index += 2
        if (terms and not sign) or not _is_name(words[index]):
            raise _not_understood(text, tokens[start][0] if start < len(tokens) else understood)
        terms.append((words[index], -number if sign == "-" else number))
        index += 1
    if understood < len(text):
        raise _not_understood(text, understood)
    return tuple(terms)


def _is_name(word: str) -> bool:
    return bool(word) and word[0] not in "+-*.0123456789"


def _not_understood(text: str, offset: int) -> RoadError:
    return RoadError(
        f"composition {quoted(text)} is not understood at {quoted(text[offset:])}: "
        "expected an expression such as 'german', 'german + 0.5*english' or 'none'"
    )
