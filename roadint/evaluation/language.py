"""Which language an answer is in."""

from collections import Counter
from collections.abc import Sequence

from roadint.errors import RoadError, quoted

EMPTY = "none"


def check_language(code: object) -> None:
    """Raises RoadError for what is no ISO 639-1 code: no answer could ever be in such a language."""
    if not isinstance(code, str) or not (len(code) == 2 and code.isascii() and code.islower()):
        raise RoadError(
            f"language {quoted(code)}: expected a code of ISO 639-1, two small letters such as 'de'"
        )


def language_of(text: str) -> str:
    """The ISO 639-1 code that py3langid gives the text; "none" where it has no letters."""
    if not any(character.isalpha() for character in text):
        return EMPTY
    import py3langid  # its model loads with it

    return str(py3langid.classify(text)[0])


def language_shares(texts: Sequence[str]) -> dict[str, float]:
    """The share of texts in each language, largest first."""
    return shares_of([language_of(text) for text in texts])


def shares_of(codes: Sequence[str]) -> dict[str, float]:
    """The share of each code, largest first."""
    return {code: count / len(codes) for code, count in Counter(codes).most_common()}
