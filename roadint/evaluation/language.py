"""Which language an answer is in."""

from collections import Counter
from collections.abc import Sequence

from roadint.errors import RoadError, did_you_mean, quoted

EMPTY = "none"


def check_language(code: object) -> None:
    """Check that answers can be in a language.

    Raises:
        RoadError: where py3langid knows no language of this code of ISO 639-1.
    """
    import py3langid

    codes = [str(code) for code, _ in py3langid.rank("a")]
    known = sorted(code for code in codes if len(code) == 2)  # "zxx" is no language
    if not isinstance(code, str) or code not in known:
        raise RoadError(
            f"language {quoted(code)}: expected a code of ISO 639-1 that py3langid knows, "
            f"two small letters such as 'de'{did_you_mean(code, known)}"
        )


def language_of(text: str) -> str:
    """The ISO 639-1 code that py3langid gives a text; "none" if it has no letters.

    Examples:
        >>> language_of("Der Hund schläft unter dem alten Tisch.")
        'de'
    """
    if not any(character.isalpha() for character in text):
        return EMPTY
    import py3langid  # its model loads with it

    return str(py3langid.classify(text)[0])


def shares_of(codes: Sequence[str]) -> dict[str, float]:
    """The share of each code, the largest first.

    Examples:
        >>> shares_of(["en", "de", "de", "de"])
        {'de': 0.75, 'en': 0.25}
    """
    return {code: count / len(codes) for code, count in Counter(codes).most_common()}
