"""The same work on the CPU and on the device: a stand-in, or a GPU in the tests of tests/gpu."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from roadint import RoadModel
from roadint.interventions.base import SubspaceIntervention
from roadint.training import base_trainer
from tests.helpers import build
from tests.other_device import on_cpu, stand_in

CPU = torch.device("cpu")
plug: Callable[[], AbstractContextManager[torch.device]] = stand_in
"""A context in which the device is there; tests/gpu sets one that gives a GPU."""


def check_same(work: Callable[[torch.device], Any], on_gpu: float = 2e-4) -> None:
    """The work gives on the device what it gives on the CPU.

    The stand-in computes as the CPU. A GPU sums in another order: there, numbers differ by up to
    `on_gpu` of the largest one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_trainer, "TrainingArguments", _on_the_cpu)
        expected = work(CPU)
    with plug() as device:
        found = on_cpu(work(device))
    same(found, expected, 2e-5 if plug is stand_in else on_gpu)


def _on_the_cpu(**settings: Any) -> TrainingArguments:
    """Trainer takes a GPU where there is one, wherever the model is."""
    return TrainingArguments(**{**settings, "use_cpu": True, "dataloader_pin_memory": False})


def same(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other, tolerance)
    elif isinstance(expected, (float, torch.Tensor)):
        found, expected = torch.as_tensor(found), torch.as_tensor(expected)
        largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(
            found, expected, rtol=5 * tolerance, atol=tolerance * max(1.0, largest)
        )
    else:
        assert found == expected


def turned(interventions: Any, seed: int = 1) -> None:
    """Values as if trained, the same on any device."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in interventions.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw).to(parameter.device))


def road_on(
    device: torch.device, *interventions: SubspaceIntervention, architecture: str = "llama"
) -> RoadModel:
    """A RoadModel whose model was put on the device before its interventions came."""
    road = RoadModel(build(architecture).to(device), list(interventions))
    turned(road.interventions)
    return road.eval()
