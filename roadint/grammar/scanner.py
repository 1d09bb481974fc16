"""Text into tokens, in time that grows with its length alone: what the grammars of compositions and subspaces read."""

import re

from roadint.errors import RoadError, quoted


def check_length(what: str, text: str, most: int) -> None:
    """Raises RoadError for text that is longer than any sense needs. what: "composition" and the like."""
    if len(text) > most:
        raise RoadError(
            f"{what} {quoted(text)} has {len(text):,} characters: expected at most {most:,}"
        )


def scan(token: re.Pattern[str], text: str) -> tuple[list[tuple[int, str]], int]:
    """The tokens of `text` with their places, without the spaces between, and how far it was understood.

    token: matches a token, or spaces; it must never match anything in more than one way, so that nothing is tried twice.
    """
    found: list[tuple[int, str]] = []
    place = 0
    while place < len(text) and (match := token.match(text, place)):
        if not match.group().isspace():
            found.append((place, match.group()))
        place = match.end()
    return found, place
