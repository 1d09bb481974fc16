"""Engines and what they are compared with: SmolLM2-135M and Gemma 3 270M, the V1 and the V2 runner.

pytest puts the tests of one engine together, so each is started once and ended before the next.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import roadint
from roadint import RoadModel
from roadint.model.pretrained import _hub_or_offline
from tests.vllm import checkpoints
from tests.vllm.engine import Engine, Runner

MODELS = ("smollm2-135m", "gemma-3-270m")
RUNNERS: tuple[Runner, ...] = ("v1", "v2")
EVERY = [
    pytest.param((runner, model), id=f"{runner}-{model}") for model in MODELS for runner in RUNNERS
]
TIGHT = {"max_num_batched_tokens": 33, "max_model_len": 256, "kv_cache_memory_bytes": 16 << 20}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a larger model can't answer otherwise: messages, and keys of V2's blocks.

    Keys are made in the engine's core, which is the same for both runners.
    """
    left_out = [
        item
        for item in items
        if ("test_bad_input.py" in item.nodeid and MODELS[1] in item.nodeid)
        or ("test_prefix_cache.py" in item.nodeid and f"v2-{MODELS[1]}" in item.nodeid)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


class Served(NamedTuple):
    """An engine, the same model on transformers, and the checkpoints that both have by label."""

    engine: Engine
    road: RoadModel
    checkpoints: dict[str, str]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a model: its own folder, and those of the checkpoints for it, by label."""

    @cache
    def of(name: str) -> tuple[str, dict[str, str]]:
        base = base_folder(name)
        model, _ = roadint.load(base, dtype="float32", device="cpu")
        folder = tmp_path_factory.mktemp(name)
        return base, {
            "": checkpoints.main(model, folder / "main"),
            "b": checkpoints.other(model, folder / "other"),
            "ad": checkpoints.adapters(model, folder / "adapters"),
        }

    return of


@pytest.fixture(scope="session")
def road_of(folders: Any) -> Any:
    """A model's RoadModel, in float32, with all of its checkpoints."""

    @cache
    def of(name: str) -> RoadModel:
        base, made = folders(name)
        model, _ = roadint.load(base, dtype="float32", device="cpu")
        return road_with(model, made)

    return of


@pytest.fixture(scope="session", params=EVERY)
def served(request: pytest.FixtureRequest, folders: Any, road_of: Any) -> Iterator[Served]:
    """Engines with room."""
    yield from _served(*request.param, folders, road_of)


@pytest.fixture(scope="session", params=RUNNERS)
def tight(request: pytest.FixtureRequest, folders: Any, road_of: Any) -> Iterator[Served]:
    """Engines that prefill 33 tokens a step, and whose memory holds three requests."""
    yield from _served(request.param, MODELS[0], folders, road_of, **TIGHT)


def _served(
    runner: Runner, name: str, folders: Any, road_of: Any, **settings: Any
) -> Iterator[Served]:
    base, made = folders(name)
    engine = Engine(runner, base, made, **settings)
    try:
        yield Served(engine, road_of(name), made)
    finally:
        engine.close()


def base_folder(name: str) -> str:
    """The folder (or the hub id) of a model that `roadint.load` knows."""
    return _hub_or_offline(name)[0]


def road_with(model: Any, made: dict[str, str]) -> RoadModel:
    """A RoadModel with the checkpoints of an engine."""
    road = RoadModel.from_pretrained(model, made[""])
    for label, folder in made.items():
        if label:
            road.add_checkpoint(Path(folder), label)
    return road
