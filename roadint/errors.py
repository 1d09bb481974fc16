"""The one error that bad input raises, and the hints that go with it; messages quote at most a line of what they were given."""

import itertools
import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

_LINE = 100  # characters that a message quotes of a value
_LISTED = 40  # options that a message lists


class RoadError(ValueError):
    """Bad input: the message names the value, what was expected and the nearest thing that works."""


def did_you_mean(value: object, options: Iterable[str]) -> str:
    """`"; did you mean 'german'?"`, or an empty string where nothing is near."""
    if not isinstance(value, str) or len(value) > _LINE:
        return ""
    near = get_close_matches(value, list(itertools.islice(options, 10_000)), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def listing(options: Iterable[object]) -> str:
    """`"'german', 'english'"`: what could have been given; the first of many."""
    listed = list(options)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return (", ".join(map(quoted, listed[:_LISTED])) or "(none)") + more


def check_known(what: str, value: object, options: Iterable[str]) -> None:
    """Raises RoadError where `value` is none of the options; what: "variant", "basis" and the like."""
    listed = list(options)
    if not isinstance(value, str) or value not in listed:
        raise RoadError(
            f"unknown {what} {quoted(value)}: expected one of {listing(listed)}{did_you_mean(value, listed)}"
        )


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return _cut(said[0])


def quoted(value: object) -> str:
    """The `repr` of what was given, in one line of at most 100 characters, and without ever making a longer one."""
    try:
        return _cut(" ".join(_short.repr(value).splitlines()))
    except Exception:  # a foreign __repr__
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= _LINE else f"{text[: _LINE - 40]}…{text[-39:]}"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _LINE
_short.maxlong = 40
_short.maxlevel = 4
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 12
