"""What can't act is refused at the front, with roadint's message; the engine lives."""

import random
from typing import Any

import pytest

from roadint import Composition, RoadError
from tests.vllm.conftest import Served
from tests.vllm.engine import Asked, EngineError
from tests.vllm.helpers import prompt_of
from tests.vllm.oracle import check, composition

MALFORMED: list[Any] = [
    "germn",
    "german@nowhere",
    "german@",
    "@b",
    "german + ",
    "german ++ english",
    "2german",
    "german; english",
    "",
    "1e9*german",
    "1001*german",
    {"german": float("nan")},
    {"german": float("inf")},
    {"german": "much"},
    {"german": None},
    {"compose": "nobody"},
    {3: 1.0},
    ["german"],
    ["german", "english"],
    3,
    1.5,
    True,
    b"german",
    "german" * 10_000,
    "ä" * 20_000,
]


@pytest.mark.parametrize("asked", MALFORMED, ids=lambda asked: repr(asked)[:30])
def test_malformed(served: Served, asked: Any) -> None:
    """The message is that of the grammar."""
    with pytest.raises(RoadError) as expected:
        Composition.parse(composition(asked), served.road.names)
    refusal = refused(served, Asked(prompt_of(random.Random(0), 8), asked))
    assert str(expected.value) in refusal
    assert len(refusal) < 2000


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"compose": "german", "strength": 2}, "'strength' beside 'compose'"),
        ("german@b + french@b + german + 2*tail + road_1@ad + road_2@ad", "road_2"),
    ],
)
def test_refused_for_other_reasons(served: Served, asked: Any, message: str) -> None:
    assert message in refused(served, Asked(prompt_of(random.Random(0), 8), asked))


@pytest.mark.parametrize(("length", "fits"), [(3, False), (4, True)])
def test_a_position_outside_the_prompt(served: Served, length: int, fits: bool) -> None:
    """`picked` edits token 3 of the prompt, which one of three tokens has not."""
    asked = Asked(prompt_of(random.Random(0), length), "picked")
    if fits:
        check(served.road, [asked], served.engine.generate([asked]))
    else:
        assert "outside a prompt of 3 tokens" in refused(served, asked)


def test_the_engine_lives(served: Served) -> None:
    """Good requests are answered beside those that are refused."""
    draw = random.Random(1)
    good = [Asked(prompt_of(draw, 12), compose, 3) for compose in ("german", None, "road_1@ad")]
    assert served.engine.run(_beside_bad_ones, good[0], MALFORMED) == len(MALFORMED)
    check(served.road, good, served.engine.generate(good))


def refused(served: Served, asked: Asked) -> str:
    """The message with which a request is refused."""
    with pytest.raises(EngineError) as error:
        served.engine.generate([asked])
    assert error.value.kind == "VLLMValidationError"
    return error.value.message


def _beside_bad_ones(llm: Any, good: Asked, bad: list[Any]) -> int:
    """Add bad requests between the steps of a good one; how many were refused."""
    from vllm.exceptions import VLLMValidationError

    from tests.vllm.inside import add, step_until_done

    identity = add(llm, good)
    count = 0
    for asked in bad:
        try:
            add(llm, Asked(good.prompt, asked))
        except VLLMValidationError:
            count += 1
        if count % 10 == 0:
            llm.llm_engine.step()
    step_until_done(llm, [])
    assert identity
    return count
