"""The scanner of this package's grammars, which takes time linear in the length of a text."""

import re

from roadint.errors import RoadError, quoted


def check_length(what: str, text: str, most: int) -> None:
    """Refuse text that is too long.

    Args:
        what: The name of the text in the message, such as "composition".
        text: The text.
        most: How many characters are allowed.

    Raises:
        RoadError: for longer text.
    """
    if len(text) > most:
        raise RoadError(
            f"{what} {quoted(text)} has {len(text):,} characters: expected at most {most:,}"
        )


def scan(token: re.Pattern[str], text: str) -> tuple[list[tuple[int, str]], int]:
    """Cut text into tokens.

    Args:
        token: Matches a token, or spaces, never in more than one way, so that nothing is tried
            twice.
        text: The text.

    Returns:
        The tokens with their offsets, without spaces; and how many characters were understood.

    Examples:
        >>> scan(re.compile(r"[ ]+|[a-z]+"), "one two!")
        ([(0, 'one'), (4, 'two')], 7)
    """
    tokens: list[tuple[int, str]] = []
    offset = 0
    while offset < len(text) and (match := token.match(text, offset)):
        if not match.group().isspace():
            tokens.append((offset, match.group()))
        offset = match.end()
    return tokens, offset
