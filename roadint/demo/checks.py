"""Checks of texts and numbers that a page, a link or a client sends, before they are used."""

import math
from typing import Any, TypeGuard

from roadint.errors import RoadError, quoted

MAX_CHARACTERS = 1_000  # of a name or an expression


def check_text(what: str, value: Any, max_characters: int = MAX_CHARACTERS) -> str:
    """Check a text.

    Args:
        what: What the text is, for the error message.
        value: What was sent; None counts as an empty text.
        max_characters: How long the text may be.

    Returns:
        The text.

    Raises:
        RoadError: where the value is not a text, is too long, or holds NUL or a lone surrogate.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RoadError(f"{what} {quoted(value)} is no text: expected some")
    if len(value) > max_characters:
        raise RoadError(
            f"{what} has {len(value):,} characters: expected at most {max_characters:,}; shorten it"
        )
    if "\0" in value:
        raise RoadError(f"{what} {quoted(value)} holds a NUL character: take it out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RoadError(
            f"{what} {quoted(value)} holds half a character (a lone surrogate) at place "
            f"{error.start + 1}: take it out"
        ) from None
    return value


def check_texts(what: str, values: Any, max_count: int) -> list[str]:
    """Check a list of texts.

    Args:
        what: What the texts are, in the plural, for the error message.
        values: What was sent; None counts as an empty list.
        max_count: How many texts there may be.

    Returns:
        The texts.

    Raises:
        RoadError: where the value is not a list, is too long, or holds something else than texts.
    """
    if values is None:
        return []
    if not isinstance(values, (list, tuple)):
        raise RoadError(f"{what} {quoted(values)} is no list: expected one of texts")
    if len(values) > max_count:
        raise RoadError(f"{len(values):,} {what} at once: expected at most {max_count}")
    return [check_text(f"one of the {what},", value) for value in values]


def check_number(what: str, value: Any, low: float, high: float) -> float:
    """Check a number.

    Args:
        what: What the number is, for the error message.
        value: What was sent.
        low: The least value that is allowed.
        high: The largest value that is allowed.

    Returns:
        The number.

    Raises:
        RoadError: where the value is not a number, not finite, or out of range.
    """
    if not _is_finite_number(value):
        raise RoadError(f"{what} {quoted(value)} is no finite number: expected {low:g} to {high:g}")
    if not low <= value <= high:
        raise RoadError(f"{what} {quoted(value)} is outside {low:g} to {high:g}")
    return value


def check_whole(what: str, value: Any, low: int, high: int) -> int:
    """Check a whole number; a float without a fraction counts as one.

    Args:
        what: What the number is, for the error message.
        value: What was sent.
        low: The least value that is allowed.
        high: The largest value that is allowed.

    Returns:
        The number.

    Raises:
        RoadError: where the value is not a whole number, or is out of range.
    """
    if not _is_finite_number(value) or value != int(value):
        raise RoadError(f"{what} {quoted(value)} is no whole number: expected {low} to {high}")
    if not low <= value <= high:
        raise RoadError(f"{what} {quoted(value)} is outside {low} to {high}")
    return int(value)


def _is_finite_number(value: Any) -> TypeGuard[float]:
    if isinstance(value, int):  # isfinite cannot take an integer of hundreds of digits
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)
