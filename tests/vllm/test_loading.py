"""Checkpoints come and go while an engine serves; what runs keeps what it began with."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from roadint import RoadIntervention, RoadModel
from tests.vllm import checkpoints
from tests.vllm.conftest import Served
from tests.vllm.engine import Answered, Asked, EngineError
from tests.vllm.helpers import prompt_of
from tests.vllm.inside import add, step_until_done
from tests.vllm.oracle import check

COMPOSITIONS = [
    "late",
    "german@late",
    "said@late",
    "ever@late",
    "tuned@late",
    "german + german@late",
]


class Seen(NamedTuple):
    """What happened when a checkpoint took the place of another under requests that run."""

    refusal: str
    before: list[Answered]
    after: list[Answered]


@contextmanager
def on_road(road: RoadModel, folder: str) -> Iterator[RoadModel]:
    road.add_checkpoint(folder, "late")
    try:
        yield road
    finally:
        road.remove_checkpoint("late")


def two_of(served: Served, folder: Path) -> tuple[str, str]:
    """The same edits with other values."""
    model = served.road.model
    return checkpoints.late(model, folder / "7", 7), checkpoints.late(model, folder / "8", 8)


def requests(new: int, seed: int) -> list[Asked]:
    draw = random.Random(seed)
    return [Asked(prompt_of(draw, draw.randint(40, 66)), text, new) for text in COMPOSITIONS]


def test_comes_and_goes(served: Served, tmp_path: Path) -> None:
    """The same label, the same prompts, other values: also from the prefix cache."""
    asked = requests(4, 1)
    for folder in (*two_of(served, tmp_path), str(tmp_path / "7")):
        served.engine.run(_load, "late", folder)
        assert served.engine.run(_served)["late"]["path"] == folder
        with on_road(served.road, folder):
            check(served.road, asked, served.engine.generate(asked))
            check(served.road, asked, served.engine.generate(asked))
        served.engine.run(_unload, "late")
        assert set(served.engine.run(_served)) == set(served.checkpoints)
        with pytest.raises(EngineError, match="late") as error:
            served.engine.generate(asked[:1])
        assert error.value.kind == "VLLMValidationError"


@pytest.mark.parametrize("new", [12, 30])
def test_replaced_while_requests_run(tight: Served, tmp_path: Path, new: int) -> None:
    """Requests that run, or were preempted, end with the old values; later ones have the new."""
    old, fresh = two_of(tight, tmp_path)
    first, second = requests(new, 2), requests(3, 2)
    tight.engine.run(_load, "late", old)
    seen = Seen(*tight.engine.run(_replace, fresh, first, second))
    assert "late" in seen.refusal
    with on_road(tight.road, old):
        check(tight.road, first, seen.before)
    with on_road(tight.road, fresh):
        check(tight.road, second, seen.after)
    tight.engine.run(_unload, "late")
    if new == 30:
        assert any(answer.preempted for answer in seen.before)


def test_what_can_not_come(served: Served, tmp_path: Path) -> None:
    """It is refused with a reason, and nothing has changed."""
    model = served.road.model
    elsewhere = [RoadIntervention(layer=1, subspaces={"far": "[0, d)"})]
    good = checkpoints.late(model, tmp_path / "late", 7)
    cases = {
        ("late", checkpoints.save(model, tmp_path / "site", elsewhere)): "layer 1",
        ("late", str(tmp_path / "nothing")): "nothing",
        ("", good): "label '' is taken",
        ("b", good): "label 'b' is taken",
        ("not a label", good): "not a label",
    }
    before = served.engine.run(_served)
    for (label, folder), message in cases.items():
        with pytest.raises(EngineError) as error:
            served.engine.run(_load, label, folder)
        assert error.value.kind == "RoadError"
        assert message in error.value.message
        assert "\n" not in error.value.message
    with pytest.raises(EngineError, match="no checkpoint 'late' is served") as error:
        served.engine.run(_unload, "late")
    assert served.engine.run(_served) == before
    asked = [Asked(prompt_of(random.Random(0), 9), "german", 2)]
    check(served.road, asked, served.engine.generate(asked))


def _load(llm: Any, label: str, folder: str) -> None:
    from roadint.engines.vllm.control import load_sync

    load_sync(llm, label, folder)


def _unload(llm: Any, label: str) -> None:
    from roadint.engines.vllm.control import unload_sync

    unload_sync(llm, label)


def _served(llm: Any) -> dict[str, Any]:
    from roadint.engines.vllm.control import served

    return served(llm)


def _replace(llm: Any, folder: str, first: list[Asked], second: list[Asked]) -> tuple[Any, ...]:
    """Replace `late` after three steps of the first requests, then add the second ones."""
    from vllm.exceptions import VLLMValidationError

    from roadint.engines.vllm import registry

    registry._GRACE = -1.0  # nothing is kept but for the requests that run
    ids = [add(llm, request) for request in first]
    for _ in range(3):
        llm.llm_engine.step()
    _unload(llm, "late")
    refusal = ""
    try:
        add(llm, first[0])
    except VLLMValidationError as error:
        refusal = str(error)
    _load(llm, "late", folder)
    later = [add(llm, request) for request in second]
    answered = step_until_done(llm, ids + later)
    return refusal, answered[: len(ids)], answered[len(ids) :]
