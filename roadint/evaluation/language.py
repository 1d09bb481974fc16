"""Which language an answer is in."""

from collections import Counter
from collections.abc import Sequence

EMPTY = "none"


def language_of(text: str) -> str:
    """The ISO 639-1 code that py3langid gives the text; "none" where it has no letters."""
    if not any(character.isalpha() for character in text):
        return EMPTY
    import py3langid  # its model loads with it

    return str(py3langid.classify(text)[0])


def language_shares(texts: Sequence[str]) -> dict[str, float]:
    """The share of texts in each language, largest first."""
    counts = Counter(language_of(text) for text in texts)
    return {code: count / len(texts) for code, count in counts.most_common()}
