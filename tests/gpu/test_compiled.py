"""Compiled models on a GPU: right, or refused; and `road.compile()`, in which any mixture is one graph."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import StaticCache

from roadint import RoadError, RoadIntervention, RoadModel
from tests.device.helpers import turned
from tests.helpers import HALVES, IDS, build

MIXED = ["a", "a + x", None, "0.5*b - x"]
TURNED = ["b", None, "x", "a + b"]


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    torch.compiler.reset()
    counters.clear()


def road_at(device: torch.device, dtype: torch.dtype = torch.float32) -> RoadModel:
    edits = RoadIntervention(layer=1, subspaces=HALVES, position="all", phase="both")
    road = RoadModel(build().to(device, dtype).requires_grad_(False), edits)
    road.add_adapter("x")
    turned(road.interventions)
    turned(road.adapters)
    return road.eval()


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-3, atol=1e-3 * largest)


def whole(model: Any) -> None:
    model.compile()


def regional(model: Any) -> None:
    for layer in model.model.layers:
        layer.compile()


def forward_alone(model: Any) -> None:
    model.forward = torch.compile(model.forward)


@pytest.mark.parametrize("compile_model", [whole, regional, forward_alone])
def test_a_compiled_model_is_right_or_refused(
    compile_model: Callable[[Any], None], device: torch.device
) -> None:
    road = road_at(device)
    ids = IDS.to(device)
    with torch.no_grad():
        expected = {str(each): road(ids, compose=each).logits for each in (MIXED, TURNED, None)}
        compile_model(road.model)
        road.model(ids)  # compiled without an edit
        for compose in (MIXED, TURNED, None):
            try:
                found = road(ids, compose=compose).logits
            except RoadError:
                continue
            check(found, expected[str(compose)])


@pytest.mark.parametrize("compose", [MIXED, None], ids=["mixed", "none"])
def test_a_static_cache(compose: Any, device: torch.device) -> None:
    road, ids = road_at(device), IDS.to(device)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = road.generate(ids, compose=compose, **settings)
    found = road.generate(ids, compose=compose, cache_implementation="static", **settings)
    assert torch.equal(found, expected)


def needs_compile(road: RoadModel) -> None:
    if "compile" not in vars(type(road)):
        pytest.fail("RoadModel has no compile of its own")


def test_generate_in_one_graph(device: torch.device) -> None:
    """Other compositions, orders, strengths and adapters: the same tokens as uncompiled, and no new graph."""
    road, ids = road_at(device), IDS.to(device)
    needs_compile(road)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    asked = [MIXED, TURNED, MIXED[::-1], "a", "0.25*a + x"]
    expected = [road.generate(ids, compose=each, **settings) for each in asked]
    road.compile()
    road.generate(ids, compose=MIXED, **settings)
    before = counters["stats"]["unique_graphs"]
    for compose, tokens in zip(asked, expected, strict=True):
        found = road.generate(ids, compose=compose, **settings)
        assert (found == tokens).float().mean() > 0.95  # a tie may fall the other way
    assert counters["stats"]["unique_graphs"] == before
    road.add_adapter("y")
    road.generate(ids, compose=["y", "x + y", None, "a"], **settings)
    road.remove_adapter("y")
    road.generate(ids, compose=MIXED, **settings)
    assert counters["stats"]["unique_graphs"] == before


def test_generate_in_another_thread(device: torch.device) -> None:
    """torch keeps CUDA graphs by thread."""
    road, ids = road_at(device), IDS.to(device)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = road.generate(ids, compose=MIXED, **settings)
    road.compile()
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for thread in (first, second):
            found = thread.submit(road.generate, ids, compose=MIXED, **settings).result()
            assert (found == expected).float().mean() > 0.9
    assert (road.generate(ids, compose=MIXED, **settings) == expected).float().mean() > 0.9


def test_generate_with_a_cache_of_the_callers(device: torch.device) -> None:
    """transformers compiles the steps of any static cache on a GPU."""
    road, ids = road_at(device), IDS.to(device)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = road.generate(ids, compose=MIXED, **settings)
    road.compile()
    cache = StaticCache(config=road.model.config, max_cache_len=ids.shape[1] + 6)
    found = road.generate(ids, compose=MIXED, past_key_values=cache, **settings)
    assert (found == expected).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_in_a_graph(dtype: torch.dtype, device: torch.device) -> None:
    road, ids = road_at(device, dtype), IDS.to(device)
    needs_compile(road)
    with torch.no_grad():
        asked = [MIXED, TURNED, "a", None]
        expected = [road(ids, compose=each).logits for each in asked]
        road.compile()
        for compose, logits in zip(asked, expected, strict=True):
            found = road(ids, compose=compose).logits
            if dtype == torch.float32:
                check(found, logits)
            else:
                assert (found - logits).float().norm() < 0.05 * logits.float().norm()
    assert torch.equal(road(ids, compose=None).logits, road.model(ids).logits)
