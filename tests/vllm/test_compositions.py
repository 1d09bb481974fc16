"""Every kind of edit, each request its own, is what RoadModel does."""

import random

import pytest

from tests.vllm.conftest import Served
from tests.vllm.engine import Asked
from tests.vllm.helpers import COMPOSITIONS, EVERYTHING, prompt_of
from tests.vllm.oracle import check, effect

FORMS = [
    "none",
    {"compose": "german"},
    {"compose": None},
    {"german": 0.5, "english": -1},
    {"compose": {"road_1@ad": 0.5}},
    "b",
]


def test_a_mixed_batch(served: Served) -> None:
    """Short and long prompts, every edit beside every other, and requests of the base model."""
    draw = random.Random(0)
    composed = [*COMPOSITIONS, *FORMS]
    asked = [
        Asked(prompt_of(draw, draw.choice((4, 7, 33, 64, 90))), compose) for compose in composed
    ]
    draw.shuffle(asked)
    check(served.road, asked, served.engine.generate(asked))


def test_edits_are_large_enough_to_see(served: Served) -> None:
    """What the comparison would miss if an edit did not act is a hundred times its tolerance."""
    names = [*EVERYTHING.split(" + "), *(name for name in served.road.names if "@" in name)]
    asked = [Asked(prompt_of(random.Random(1), 40), name, 4) for name in names]
    answered = served.engine.generate(asked)
    effects = {
        request.compose: effect(served.road, request, answer)
        for request, answer in zip(asked, answered, strict=True)
    }
    assert min(effects.values()) > 1e-2, effects


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_prompts(served: Served, length: int) -> None:
    """A position may reach over the beginning of a prompt.

    The first token's hidden states are hundreds of times larger than others', so an edit of it that
    all that follows depends on makes rounding large, in either engine.
    """
    composed = [name for name in COMPOSITIONS if name is None or "picked" not in name]
    draw = random.Random(length)
    asked = [Asked(prompt_of(draw, length), compose, 2) for compose in composed]
    check(served.road, asked, served.engine.generate(asked), rounding=10)
