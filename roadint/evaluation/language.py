"""Which language an answer is in."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

EMPTY = "none"


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import LanguageIdentifier

    return LanguageIdentifier.from_model()


def language_of(text: str) -> str:
    """The ISO 639-1 code that py3langid gives the text; "none" where it has no letters."""
    if not any(character.isalpha() for character in text):
        return EMPTY
    return str(_identifier().classify(text)[0])


def language_shares(texts: Sequence[str]) -> dict[str, float]:
    """The share of texts in each language, largest first."""
    counts = Counter(language_of(text) for text in texts)
    return {code: count / len(texts) for code, count in counts.most_common()}
