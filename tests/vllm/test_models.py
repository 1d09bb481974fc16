"""Edits of every component and adapters on all linear layers are right in every architecture.

Or they are refused when the engine starts, with the reason.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roadint import RoadModel
from tests.vllm.architectures import CASES, MORE, Case, adapters, edits, make
from tests.vllm.checkpoints import save
from tests.vllm.engine import Answered, Asked, EngineError, Process, arguments_of
from tests.vllm.inside import answers_of
from tests.vllm.oracle import TOLERANCE, check, difference, effect

SMALL_JAMBA = {
    "num_experts": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_dt_rank": 8,
}
TESTED = CASES | (MORE if os.environ.get("ROADINT_EVERY_MODEL") else {})
LENGTHS = (9, 21)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """One process for all engines, one after another."""
    made = Process("v1")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("name", TESTED)
def test_all_that_is_edited(process: Process, name: str, tmp_path: Path) -> None:
    case = TESTED[name]
    model = make(case.model_type, tmp_path / "model", **case.further)
    parts = [part for part in edits(model) if part.component not in case.unlike]
    on_layers = [adapter for adapter in adapters(model) if adapter.name not in case.unlike]
    road, made = RoadModel(model), {"h": save(model, tmp_path / "h", parts, seed=1)}
    if on_layers:
        made["ad"] = save(model, tmp_path / "ad", [], on_layers, seed=2)
    for label, path in made.items():
        road.add_checkpoint(path, label)
    draw = random.Random(0)
    asked = [
        Asked(tuple(draw.randrange(3, 512) for _ in range(length)), compose, 5)
        for compose in (None, *road.names)
        for length in LENGTHS
    ]
    answered = process.run(answers_of, _arguments(tmp_path, made, case), asked)
    wrong, allowed = [], max(TOLERANCE, case.own)
    for one, answer in zip(asked, answered, strict=True):
        found = difference(road, one, answer)
        acts = one.compose is None or effect(road, one, answer) > 4 * allowed
        if not (found.logprob <= allowed and found.regret <= allowed and acts):
            wrong.append(f"{one.compose}: {found}, {'' if acts else 'no effect'}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, case in TESTED.items() for what in case.unlike]
)
def test_what_can_not_be_edited(process: Process, name: str, what: str, tmp_path: Path) -> None:
    case = TESTED[name]
    model = make(case.model_type, tmp_path / "model", **case.further)
    parts = [part for part in edits(model) if part.component == what]
    on_layers = [adapter for adapter in adapters(model) if adapter.name == what]
    made = {"": save(model, tmp_path / "one", parts, on_layers, seed=1)}
    with pytest.raises(EngineError) as refused:
        process.run(answers_of, _arguments(tmp_path, made, case), [])
    assert refused.value.kind == "RoadError"
    assert case.unlike[what] in refused.value.message


def test_layers_that_are_not_known_are_refused(process: Process, tmp_path: Path) -> None:
    """Jamba's: nobody compared them, and transformers' own run in their place."""
    further: dict[str, Any] = {"num_key_value_heads": 2, "use_mamba_kernels": False}
    model = make("jamba", tmp_path / "model", **further, **SMALL_JAMBA)
    parts = [part for part in edits(model) if part.component == "block_output"]
    made = {"": save(model, tmp_path / "one", parts, seed=1)}
    with pytest.raises(EngineError, match="expected model_impl='transformers'") as refused:
        process.run(answers_of, _arguments(tmp_path, made, Case("jamba")), [])
    assert refused.value.kind == "RoadError"


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_an_adapter_before_any_request(process: Process, name: str, tmp_path: Path) -> None:
    """Nothing has run by then, and it acts all the same; routers and their gates are left alone."""
    case = (CASES | MORE)[name]
    model = make(case.model_type, tmp_path / "model", **case.further)
    later = save(model, tmp_path / "later", [], adapters(model)[:1], seed=2)
    asked = [Asked(tuple(range(3, 20)), compose, 5) for compose in (None, "neighbours@later")]
    arguments = _arguments(tmp_path, {}, case) | {
        "additional_config": {"roadint": {"checkpoints": {}, "adapters": True}}
    }
    answered = process.run(_load_first, arguments, later, asked)
    road = RoadModel(model)
    road.add_checkpoint(later, "later")
    check(road, asked, answered)
    assert effect(road, asked[1], answered[1]) > 100 * TOLERANCE


def _load_first(
    _: None, arguments: dict[str, Any], path: str, asked: list[Asked]
) -> list[Answered]:
    from roadint.engines.vllm import control

    return answers_of(None, arguments, asked, lambda llm: control.load_sync(llm, "later", path))


def _arguments(folder: Path, made: dict[str, str], case: Case) -> dict[str, Any]:
    settings: dict[str, Any] = {"skip_tokenizer_init": True, "max_model_len": 96, **case.settings}
    return arguments_of(str(folder / "model"), made, **settings)
