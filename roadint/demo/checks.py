"""What comes in from outside, before anything uses it: texts and numbers of the page, the address, the endpoint for programs."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from roadint.errors import RoadError, quoted

MOST_CHARACTERS = 1_000  # of a name or an expression
UNEXPECTED = "something went wrong on the server, and was noted there: what you asked for was not at fault as far as is known"

_log = logging.getLogger("roadint.demo")


def check_text(what: str, value: Any, most: int = MOST_CHARACTERS) -> str:
    """The text, "" for None. Raises RoadError for what is none, is too long, or holds what no text can (NUL, half a letter)."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RoadError(f"{what} {quoted(value)} is no text: expected some")
    if len(value) > most:
        raise RoadError(
            f"{what} has {len(value):,} characters: expected at most {most:,}; shorten it"
        )
    if "\0" in value:
        raise RoadError(f"{what} {quoted(value)} holds a NUL character: take it out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        where = error.start + 1
        raise RoadError(
            f"{what} {quoted(value)} holds half a character (a lone surrogate) at place {where}: take it out"
        ) from None
    return value


def check_texts(what: str, values: Any, most: int) -> list[str]:
    """A list of at most so many texts. Raises RoadError for anything else."""
    if values is None:
        return []
    if not isinstance(values, (list, tuple)):
        raise RoadError(f"{what} {quoted(values)} is no list: expected one of texts")
    if len(values) > most:
        raise RoadError(f"{len(values):,} {what} at once: expected at most {most}")
    return [check_text(f"one of the {what},", each) for each in values]


def check_number(what: str, value: Any, low: float, high: float) -> float:
    """The number. Raises RoadError, which names it, for what is none, is not finite or outside."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        raise RoadError(f"{what} {quoted(value)} is no finite number: expected {low:g} to {high:g}")
    if not low <= value <= high:
        raise RoadError(f"{what} {quoted(value)} is outside {low:g} to {high:g}")
    return value


def check_whole(what: str, value: Any, low: int, high: int) -> int:
    """The whole number. Raises RoadError, which names it, for what is none or is outside."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not _finite(value)
        or value != int(value)
    ):
        raise RoadError(f"{what} {quoted(value)} is no whole number: expected {low} to {high}")
    if not low <= value <= high:
        raise RoadError(f"{what} {quoted(value)} is outside {low} to {high}")
    return int(value)


def unexpected(error: BaseException, replace: Sequence[tuple[str, str]] = ()) -> str:
    """The line that a visitor gets: a RoadError's own, paths replaced by names; anything else goes to the log."""
    if isinstance(error, RoadError):
        told = str(error)
        for path, name in replace:
            told = told.replace(path, name)
        return told
    _log.error("the app failed", exc_info=error)
    return UNEXPECTED


def _finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)
