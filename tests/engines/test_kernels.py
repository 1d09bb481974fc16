"""Whole calls through the Triton kernels, in Triton's interpreter, beside the same calls in plain PyTorch."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from roadint import RoadIntervention, RoadModel
from roadint.engines.transformers import hidden_edits, turning
from roadint.rotation.kernels import operation
from tests.helpers import HALVES, IDS, build

USERS: list[ModuleType] = [operation, turning, hidden_edits]
BATCHES: list[Any] = [["a", None, "0.5*b + w", "x + p"], ["x", "y", "z", "w + x"], "x"]


@pytest.fixture
def kernels() -> ModuleType:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("Triton compiles here: tests/gpu runs the same features")
    from roadint.rotation.kernels import triton

    return triton


@pytest.fixture
def road() -> RoadModel:
    road = RoadModel(
        build("llama").requires_grad_(False),
        [
            RoadIntervention(layer=0, subspaces=HALVES, variant="road_4"),
            RoadIntervention(layer=1, subspaces={"w": "[0, d)"}, position="all", phase="both"),
        ],
    )
    for name, variant in (("x", "road_1"), ("y", "road_2"), ("z", "road_1")):
        road.add_adapter(name, variant=variant, layers=[0, 2], targets=["q_proj", "down_proj"])
    road.add_adapter("p", pairing=8, layers=[1], targets=["up_proj"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in road.trained_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return road


def results(road: RoadModel) -> Iterator[Tensor]:
    for compose in BATCHES:
        with torch.no_grad():
            yield road(IDS, compose=compose).logits
        yield road.generate(IDS, compose=compose, max_new_tokens=2, do_sample=False, num_beams=2)
        road.zero_grad()
        road(IDS, compose=compose).logits.square().sum().backward()
        yield from (p.grad.clone() for p in road.trained_parameters() if p.grad is not None)


def test_calls_beams_and_gradients(
    kernels: ModuleType, road: RoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = list(results(road))
    asked: list[torch.dtype] = []

    def kernel_for(h: Tensor) -> ModuleType:
        asked.append(h.dtype)
        return kernels

    for module in USERS:
        monkeypatch.setattr(module, "kernel_for", kernel_for)
    found = list(results(road))
    assert len(asked) > 50, "the kernels ran"
    assert len(found) == len(plain)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
