"""Compositions: expressions over subspace names, `a`, `a + b`, `0.5*a - b`, `all`, `none`."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from roadint.errors import RoadError, did_you_mean, listing

_TERM = re.compile(
    r"\s*(?P<sign>[+-])?\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*\*\s*)?(?P<name>[^\W\d]\w*(?:@\w+)?)\s*"
)


@dataclass(frozen=True)
class Composition:
    """Which subspaces act, and how strongly; the identity (the base model) where there is no term."""

    terms: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: "CompositionLike", names: Iterable[str]) -> "Composition":
        """Read an expression over `names`; None and "none" are the identity, "all" is every name at strength 1.

        "german@a" is the subspace of the checkpoint that was loaded as a; "a" alone is all of its subspaces.
        A mapping of names to strengths is taken as it is. Strengths of a repeated name add up; zeros are dropped.
        Raises RoadError for an unknown name, a strength that is not finite, or text that is no such expression.
        """
        order = names if isinstance(names, dict) else {name: place for place, name in enumerate(names)}
        if text is None:
            return cls()
        if isinstance(text, Composition):
            pairs: Iterable[tuple[str, float]] = text.terms
        elif isinstance(text, Mapping):
            pairs = text.items()
        elif isinstance(text, str):
            pairs = () if text.strip() == "none" else _parse_terms(text)
        else:
            raise RoadError(f"composition {text!r} is not understood: expected text such as 'german + 0.5*english', or None")
        strengths: dict[str, float] = {}
        for name, strength in pairs:
            meant = _meant(name, order)
            if not meant and name != ALL:
                raise RoadError(
                    f"unknown subspace {name!r} in composition {str(text)!r}: "
                    f"expected one of {listing(order)}{did_you_mean(name, order)}"
                )
            if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
                raise RoadError(f"strength {strength!r} of {name!r} is no finite number: expected one such as 0.5 or -1")
            for each in meant:
                strengths[each] = strengths.get(each, 0.0) + float(strength)
        acting = (name for name, strength in strengths.items() if strength)
        return cls(tuple((name, strengths[name]) for name in sorted(acting, key=order.__getitem__)))

    def __str__(self) -> str:
        text = ""
        for name, strength in self.terms:
            sign = "-" if strength < 0 else "+"
            factor = "" if abs(strength) == 1 else f"{abs(strength):g}*"
            text += f" {sign} {factor}{name}" if text else f"{'-' if strength < 0 else ''}{factor}{name}"
        return text or "none"


def _meant(name: str, names: Mapping[str, int]) -> list[str]:
    """The subspaces that a name stands for: itself, all of a checkpoint's, or all."""
    if name == "all":
        return list(names)
    return [name] if name in names else [each for each in names if each.partition("@")[2] == name]


CompositionLike = Composition | str | Mapping[str, float] | None
ALL: Final = "all"


def parse_rows(compose: CompositionLike | Sequence[CompositionLike], rows: int, names: Sequence[str]) -> list[Composition]:
    """One Composition for each of `rows` rows: a list gives each row its own, anything else goes to all rows."""
    order = {name: place for place, name in enumerate(names)}
    if compose is None or isinstance(compose, (str, Mapping, Composition)):
        return [Composition.parse(compose, order)] * rows
    if len(compose) != rows:
        raise RoadError(f"{len(compose)} compositions for {rows} rows: expected one a row, or a single one for all")
    return [Composition.parse(each, order) for each in compose]


def _parse_terms(text: str) -> list[tuple[str, float]]:
    terms: list[tuple[str, float]] = []
    position = 0
    while position < len(text) or not terms:
        found = _TERM.match(text, position)
        if found is None or (terms and not found["sign"]):
            raise RoadError(
                f"composition {text!r} is not understood at {text[position:]!r}: "
                "expected an expression such as 'german', 'german + 0.5*english' or 'none'"
            )
        number = float(found["number"] or 1)
        terms.append((found["name"], -number if found["sign"] == "-" else number))
        position = found.end()
    return terms
