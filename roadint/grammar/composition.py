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
STRONGEST: Final = 1000.0  # the size of a strength; beyond it, float32 no longer holds the angle s·θ to a thousandth of a turn


@dataclass(frozen=True)
class Composition:
    """Which subspaces act, and how strongly; the identity (the base model) where there is no term.

    Its text, `str(composition)`, is an expression that means the same, to the last digit.
    """

    terms: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: "CompositionLike", names: Iterable[str]) -> "Composition":
        """Read an expression over `names`, whose order is that of the terms (a mapping stands for its keys).

        None and "none" are the identity, "all" is every name at strength 1. "german@a" is the subspace of the checkpoint that was
        loaded as a; "a" alone is all of its subspaces. A mapping of names to strengths, any real numbers, says the same without
        text. Strengths of a repeated name add up; zeros are dropped.
        Raises RoadError for an unknown name, text that is no such expression (or has over 16,000 characters), and a sum of
        strengths that is not finite or above 1,000 in size.
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
    """One Composition for each of `rows` rows: a list or tuple gives each row its own, anything else goes to all rows."""
    order = _order(names)
    if not isinstance(compose, (list, tuple)):
        return [_parse(compose, order)] * rows
    if len(compose) != rows:
        raise RoadError(
            f"{len(compose)} compositions for {rows} rows: expected one a row, or a single one for all"
        )
    texts = {
        each: _parse(each, order)
        for each in dict.fromkeys(each for each in compose if isinstance(each, str))
    }
    return [texts[each] if isinstance(each, str) else _parse(each, order) for each in compose]


def _order(names: Iterable[str]) -> dict[str, int]:
    """Name → its place."""
    try:
        listed = iter(() if isinstance(names, str) else names)
    except TypeError:  # arrays without a dimension say that they are iterable
        listed = None
    if listed is None or isinstance(names, str):
        raise RoadError(
            f"names {quoted(names)} are not understood: expected those of the subspaces, such as ['german', 'english']"
        )
    order: dict[str, int] = {}
    for name in listed:
        if not isinstance(name, str):
            raise RoadError(
                f"name {quoted(name)} of a subspace is no text: expected one such as 'german'"
            )
        order.setdefault(name, len(order))
    return order


def _parse(given: Any, order: Mapping[str, int]) -> Composition:
    """order: every name that there is, and its place."""
    written: dict[str, float] = {}
    for name, strength in _pairs(given):
        if not isinstance(name, str):
            raise RoadError(
                f"name {quoted(name)} in composition {quoted(given)} is no text: expected one of {listing(order)}"
            )
        written[name] = written.get(name, 0.0) + _real(name, strength)
    strengths: dict[str, float] = {}
    for name, strength in written.items():
        meant = _meant(name, order)
        if not meant and name != ALL:
            about = quoted(str(given) if isinstance(given, Composition) else given)
            raise RoadError(
                f"unknown subspace {quoted(name)} in composition {about}: "
                f"expected one of {listing(order)}{did_you_mean(name, order)}"
            )
        for each in meant:
            strengths[each] = strengths.get(each, 0.0) + strength
    for name, strength in strengths.items():
        check_strength(name, strength)
    acting = sorted(
        (name for name, strength in strengths.items() if strength), key=order.__getitem__
    )
    return Composition(tuple((name, strengths[name]) for name in acting))


def _pairs(given: Any) -> Iterable[tuple[Any, Any]]:
    """Names and strengths as they were given, repeated ones too."""
    if given is None:
        return ()
    if isinstance(given, str):
        check_length("composition", given, _LONGEST)
        return () if given.strip() == "none" else _parse_terms(given)
    if isinstance(given, Mapping):
        return given.items()
    if isinstance(given, Composition):
        terms = given.terms
        if isinstance(terms, (tuple, list)) and all(
            isinstance(term, (tuple, list)) and len(term) == 2 for term in terms
        ):
            return terms
    raise RoadError(
        f"composition {quoted(given)} is not understood: expected text such as 'german + 0.5*english', or None"
    )


def _meant(name: str, names: Mapping[str, int]) -> list[str]:
    """The subspaces that a name stands for: itself, all of a checkpoint's, or all."""
    if name == ALL:
        return list(names)
    return [name] if name in names else [each for each in names if each.partition("@")[2] == name]


def check_strength(name: str, strength: float) -> None:
    """Raises RoadError for a strength that is not finite, or beyond what float32 can turn by."""
    if not math.isfinite(strength):
        raise _no_number(name, strength)
    if abs(strength) > STRONGEST:
        raise RoadError(
            f"strength {strength!r} of {quoted(name)} is too large: expected at most {STRONGEST:,.0f} in size, above which float32 "
            "loses the angle"
        )


def _real(name: str, strength: Any) -> float:
    """A strength as a float: numbers, and NumPy's and torch's scalars; infinite where text overflows. Raises RoadError."""
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
        f"strength {quoted(strength)} of {quoted(name)} is no finite number: expected one such as 0.5 or -1"
    )


@lru_cache(maxsize=512)  # a training step asks for the same few, again and again
def _parse_terms(text: str) -> tuple[tuple[str, float], ...]:
    """`[±] [number *] name`, with a sign before every term but the first."""
    tokens, understood = scan(_TOKEN, text)
    terms: list[tuple[str, float]] = []
    place = 0
    while place < len(tokens) or not terms:
        start = place
        sign = tokens[place][1] if place < len(tokens) and tokens[place][1] in "+-" else ""
        place += bool(sign)
        number = 1.0
        if (
            place + 1 < len(tokens)
            and tokens[place + 1][1] == "*"
            and tokens[place][1][0] in ".0123456789"
        ):
            number = float(tokens[place][1])
            place += 2
        if (terms and not sign) or place >= len(tokens) or not _is_name(tokens[place][1]):
            raise _not_understood(text, tokens[start][0] if start < len(tokens) else understood)
        terms.append((tokens[place][1], -number if sign == "-" else number))
        place += 1
    if understood < len(text):
        raise _not_understood(text, understood)
    return tuple(terms)


def _is_name(token: str) -> bool:
    return token[0] not in "+-*.0123456789"


def _not_understood(text: str, place: int) -> RoadError:
    return RoadError(
        f"composition {quoted(text)} is not understood at {quoted(text[place:])}: "
        "expected an expression such as 'german', 'german + 0.5*english' or 'none'"
    )
