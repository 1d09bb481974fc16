"""What `additional_config` may say of roadint, and what is refused."""

from typing import Any

import pytest

from roadint import RoadError
from roadint.engines.vllm.settings import Settings


@pytest.mark.parametrize("given", [None, {}, {"other": {"checkpoints": {}}}, {"roadint": None}, 3])
def test_an_engine_without_roadint(given: Any) -> None:
    assert Settings.of(given) is None


def test_all_that_can_be_said() -> None:
    said = {
        "checkpoints": {"": "runs/x", "a": "runs/y"},
        "layers": [3, 1, 3],
        "adapters": True,
        "folder": "runs",
    }
    assert Settings.of({"roadint": said}) == Settings(said["checkpoints"], (1, 3), True, "runs")
    assert Settings.of({"roadint": {}}) == Settings()
    assert Settings.of({"roadint": {"checkpoints": {}}}) == Settings()
    assert Settings.of({"roadint": {"layers": 2}}) == Settings(layers=(2,))


def test_what_a_worker_adds_changes_nothing() -> None:
    said: dict[str, Any] = {"checkpoints": {"": "runs/x"}}
    assert Settings.of({"roadint": {**said, "armed": [["x", []]]}}) == Settings.of(
        {"roadint": said}
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("runs/x", "expected a mapping such as"),
        (["runs/x"], "expected a mapping such as"),
        ({"checkpoint": {}}, "'checkpoint': expected .*did you mean 'checkpoints'"),
        ({"armd": 1}, "'armd': expected 'checkpoints', 'layers', 'adapters', 'folder'$"),
        ({"checkpoints": "runs/x"}, "expected a mapping of labels"),
        ({"checkpoints": ["runs/x"]}, "expected a mapping of labels"),
        ({"checkpoints": {"a": 3}}, "checkpoint 'a' is 3: expected a folder or a hub id"),
        ({"checkpoints": {"a": None}}, "checkpoint 'a' is None"),
        ({"checkpoints": {"a b": "runs/x"}}, "'a b' of a checkpoint is not a plain word"),
        ({"checkpoints": {"a@b": "runs/x"}}, "'a@b' of a checkpoint is not a plain word"),
        ({"checkpoints": {1: "runs/x"}}, "label 1 of a checkpoint"),
        ({"checkpoints": {"all": "runs/x"}}, "'all'"),
        ({"checkpoints": {"none": "runs/x"}}, "'none'"),
        ({"layers": "1"}, "layers='1': expected a list of indices from 0"),
        ({"layers": [-1]}, "expected a list of indices from 0"),
        ({"layers": [1.0]}, "expected a list of indices from 0"),
        ({"layers": [True]}, "expected a list of indices from 0"),
        ({"layers": None}, "expected a list of indices from 0"),
        ({"adapters": 1}, "adapters=1: expected true or false"),
        ({"adapters": "yes"}, "adapters='yes': expected true or false"),
        ({"folder": 3}, "folder=3: expected a path"),
    ],
)
def test_what_is_refused(given: Any, message: str) -> None:
    with pytest.raises(RoadError, match=message) as refused:
        Settings.of({"roadint": given})
    assert "\n" not in str(refused.value)
