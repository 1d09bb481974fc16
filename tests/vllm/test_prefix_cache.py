"""Blocks of the prefix cache are shared where nothing is edited, and never where something is.

Blocks have 32 tokens. vLLM never takes all of a prompt from the cache: the last token runs.
"""

import random
from collections.abc import Iterator

import pytest

from tests.vllm.conftest import Served
from tests.vllm.engine import Answered, Asked
from tests.vllm.helpers import prompt_of
from tests.vllm.inside import forget
from tests.vllm.oracle import check

LONG = prompt_of(random.Random(2), 120)
COMPOSITIONS = [
    None,
    "german",
    "0.5*german",
    "english",
    "tail",
    "head",
    "whole",
    "picked",
    "spoken",
    "start",
    "axes",
    "second",
    "german@b",
    "road_1@ad",
    "queries@ad",
    "german + queries@ad",
]


@pytest.fixture
def cold(served: Served) -> Iterator[Served]:
    served.engine.run(forget)
    yield served
    served.engine.run(forget)


def answers(served: Served, *asked: Asked) -> list[Answered]:
    """Answers, one request after the other, each of which is RoadModel's."""
    answered = [served.engine.generate([request])[0] for request in asked]
    check(served.road, asked, answered)
    return answered


def cached(served: Served, *asked: Asked) -> list[int]:
    """How many tokens of each came from the cache; each answer is RoadModel's."""
    return [answer.cached for answer in answers(served, *asked)]


def test_warm_equals_cold(cold: Served) -> None:
    asked = [Asked(LONG[:100], compose, 3) for compose in COMPOSITIONS]
    first, second = cold.engine.generate(asked), cold.engine.generate(asked)
    check(cold.road, asked, first)
    check(cold.road, asked, second)
    assert [answer.cached for answer in second] == [96] * len(asked)
    assert [answer.tokens for answer in second] == [answer.tokens for answer in first]


def test_what_is_shared(cold: Served) -> None:
    """The blocks before the first edited token, by all compositions."""
    expected = {
        None: 0,  # nobody was here before
        "german": 96,  # the last token is edited, number 99
        "0.5*german": 96,
        "tail": 64,  # the last five
        "axes": 96,  # the last three
        "spoken": 96,  # none of the prompt
        "second": 96,
        "head": 0,
        "start": 0,
        "whole": 0,
        "picked": 0,
        "queries@ad": 0,
        "queries@ad + german": 96,  # the same adapter was here
        "0.5*queries@ad": 0,
        "head + german": 96,  # the same head
        "german@b": 96,
    }
    asked = [Asked(LONG[:100], compose, 1) for compose in expected if compose != "head + german"]
    found = cached(cold, *asked)
    assert dict(zip((request.compose for request in asked), found, strict=True)) == {
        name: count for name, count in expected.items() if name != "head + german"
    }


@pytest.mark.parametrize("compose", ["german", "tail", "axes", "picked"])
@pytest.mark.parametrize("lengths", [(64, 66), (66, 64), (66, 97), (64, 65, 66, 67, 68, 69)])
def test_same_beginning_other_length(cold: Served, compose: str, lengths: tuple[int, ...]) -> None:
    """What counts from the end edits other tokens of blocks whose tokens are the same."""
    asked = [Asked(LONG[:length], compose, 2) for length in lengths]
    answers(cold, *asked, *asked)


def test_others_in_between(cold: Served) -> None:
    """Prompts of one beginning, of many lengths and compositions, a few at a time."""
    draw = random.Random(3)
    lengths = [*range(62, 71), *range(94, 101), 33, 32, 31]
    for _ in range(12):
        asked = [
            Asked(LONG[: draw.choice(lengths)], draw.choice(COMPOSITIONS), draw.randint(1, 3))
            for _ in range(4)
        ]
        check(cold.road, asked, cold.engine.generate(asked))


@pytest.mark.parametrize("compose", ["spoken", "second", "whole", "start", "german", "road_1@ad"])
def test_an_answer_becomes_a_prompt(cold: Served, compose: str) -> None:
    """Generated tokens that were edited as such are a prompt's now, where they are not."""
    beginning = LONG[:45]
    (first,) = answers(cold, Asked(beginning, compose, 25))
    longer = (*beginning, *first.tokens)
    asked = [
        Asked(longer[:length], other, 2)
        for length in (66, 70)
        for other in (None, compose, "spoken", "whole", f"0.5*{compose}")
    ]
    random.Random(4).shuffle(asked)
    answers(cold, *asked, Asked(beginning, compose, 25))


def test_an_answer_shares_its_prompt_alone(cold: Served) -> None:
    """Of 45 + 25 tokens, the second block holds generated tokens, which are edited or not."""
    beginning = LONG[:45]
    (first,) = answers(cold, Asked(beginning, "spoken", 25))
    assert cached(cold, Asked((*beginning, *first.tokens), None, 1)) == [32]
    shared = []
    for other in (None, "spoken"):  # a prompt of which it edits nothing
        cold.engine.run(forget)
        (plain,) = answers(cold, Asked(beginning, None, 25))
        shared += cached(cold, Asked((*beginning, *plain.tokens), other, 1))
    # with two kinds of attention, vLLM keeps no block that holds generated tokens
    assert shared[0] == shared[1] >= 32
