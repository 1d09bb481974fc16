"""The one error that bad input raises, and the hint that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class RoadError(ValueError):
    """Bad input: the message names the value, what was expected and the nearest thing that works."""


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """`"; did you mean 'german'?"`, or an empty string where nothing is near."""
    near = get_close_matches(value, list(options), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def listing(options: Iterable[object]) -> str:
    """`"'german', 'english'"`: what could have been given."""
    return ", ".join(repr(option) for option in options) or "(none)"


def check_known(what: str, value: object, options: Iterable[str]) -> None:
    """Raises RoadError where `value` is none of the options; what: "variant", "basis" and the like."""
    listed = list(options)
    if value not in listed:
        raise RoadError(f"unknown {what} {value!r}: expected one of {listing(listed)}{did_you_mean(str(value), listed)}")


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
