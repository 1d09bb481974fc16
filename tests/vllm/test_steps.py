"""However the engine cuts work into steps: chunks, preemption, requests that end early."""

import random
from typing import Any

from tests.vllm.conftest import Served
from tests.vllm.engine import Answered, Asked
from tests.vllm.helpers import COMPOSITIONS, EVERYTHING, prompt_of
from tests.vllm.inside import add, step_until_done
from tests.vllm.oracle import check


def test_a_prefill_in_chunks(tight: Served) -> None:
    """33 tokens a step, with whatever else is in it."""
    draw = random.Random(5)
    asked = [
        Asked(prompt_of(draw, draw.choice((32, 33, 34, 66, 67, 100, 131))), compose, 3)
        for compose in COMPOSITIONS
    ]
    check(tight.road, asked, tight.engine.generate(asked))


def test_preemption(tight: Served) -> None:
    """Requests that lose their memory begin again, and what they said before is no prompt."""
    draw = random.Random(6)
    composed = [None, "spoken", "second", "start", "tail + loud", "whole", "road_1@ad", EVERYTHING]
    asked = [Asked(prompt_of(draw, draw.randint(50, 70)), compose, 30) for compose in composed]
    answered = tight.engine.generate(asked)
    check(tight.road, asked, answered)
    assert sum(answer.preempted > 0 for answer in answered) >= 2


def test_requests_that_are_aborted(tight: Served) -> None:
    """Others take their places in the batch, and none of their edits."""
    draw = random.Random(7)
    first = [Asked(prompt_of(draw, draw.randint(4, 30)), compose, 12) for compose in COMPOSITIONS]
    draw.shuffle(first)
    second = [Asked(request.prompt, draw.choice(COMPOSITIONS), 5) for request in first]
    stay, answered = tight.engine.run(_abort_some, first, second)
    check(tight.road, [first[index] for index in stay] + second, answered)


def test_many_rows_at_once(served: Served) -> None:
    """Sixteen requests, each with all edits at once and strengths of its own."""
    draw = random.Random(8)
    asked = [
        Asked(
            prompt_of(draw, draw.randint(8, 40)),
            {name: round(draw.uniform(-1, 1), 2) for name in EVERYTHING.split(" + ")},
            3,
        )
        for _ in range(16)
    ]
    check(served.road, asked, served.engine.generate(asked))


def test_more_compositions_than_slots(served: Served) -> None:
    """Slots are used again."""
    draw = random.Random(9)
    names = ["german", "tail", "spoken", "road_1@ad", "road_2@ad", "german@b"]
    asked = [
        Asked(prompt_of(draw, 5), {draw.choice(names): round(draw.uniform(-1, 1), 3)}, 2)
        for _ in range(70)
    ]
    check(served.road, asked, served.engine.generate(asked))


def _abort_some(
    llm: Any, first: list[Asked], second: list[Asked]
) -> tuple[list[int], list[Answered]]:
    """Start the first, abort every third of them after four steps, then add the second."""
    ids = [add(llm, request) for request in first]
    for _ in range(4):
        llm.llm_engine.step()
    gone = ids[::3]
    llm.llm_engine.abort_request(gone)
    stay = [index for index, identity in enumerate(ids) if identity not in gone]
    later = [add(llm, request) for request in second]
    return stay, step_until_done(llm, [ids[index] for index in stay] + later)
