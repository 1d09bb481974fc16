"""The one error that bad input raises, and the hints that go with it.

Messages quote at most a line of the value that they are about.
"""

import itertools
import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

_LINE = 100  # characters that a message quotes of a value
_LISTED = 40  # options that a message lists


class RoadError(ValueError):
    """Bad input: the message names the value, what was expected and the nearest that works."""


def did_you_mean(value: object, options: Iterable[str]) -> str:
    """The end of a message that proposes the nearest option.

    Args:
        value: The unknown value.
        options: The known values, of which the first 10,000 are compared.

    Returns:
        The proposal, or an empty string where no option is near.

    Examples:
        >>> did_you_mean("germn", ["german", "english"])
        "; did you mean 'german'?"
    """
    if not isinstance(value, str) or len(value) > _LINE:
        return ""
    near = get_close_matches(value, list(itertools.islice(options, 10_000)), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def listing(options: Iterable[object]) -> str:
    """The options as a message lists them, the first 40 of many.

    Examples:
        >>> listing(["german", "english"])
        "'german', 'english'"
    """
    listed = list(options)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return (", ".join(map(quoted, listed[:_LISTED])) or "(none)") + more


def check_known(what: str, value: object, options: Iterable[str]) -> None:
    """Check that a value is one of the options.

    Args:
        what: The name of the value in the message, such as "variant" or "basis".
        value: The value.
        options: The known values.

    Raises:
        RoadError: where it is not.
    """
    listed = list(options)
    if not isinstance(value, str) or value not in listed:
        raise RoadError(
            f"unknown {what} {quoted(value)}: "
            f"expected one of {listing(listed)}{did_you_mean(value, listed)}"
        )


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 100 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _shortened(lines[0])


def quoted(value: object) -> str:
    """The `repr` of a value in one line of at most 100 characters; a longer one is never made.

    Examples:
        >>> quoted("german")
        "'german'"
    """
    try:
        return _shortened(" ".join(_short.repr(value).splitlines()))
    except Exception:  # a foreign __repr__ may raise anything
        return f"<{type(value).__name__}>"


def _shortened(text: str) -> str:
    return text if len(text) <= _LINE else f"{text[: _LINE - 40]}…{text[-39:]}"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _LINE
_short.maxlong = 40
_short.maxlevel = 4
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 12
