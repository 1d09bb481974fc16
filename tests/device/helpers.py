"""The same work on the CPU and on the device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from roadint import RoadModel
from roadint.interventions.base import SubspaceIntervention
from tests.helpers import build
from tests.other_device import on_cpu, other_device

CPU = torch.device("cpu")


def check_same(work: Callable[[torch.device], Any]) -> None:
    """The work gives on the device what it gives on the CPU."""
    expected = work(CPU)
    with pytest.MonkeyPatch.context() as patch, other_device(patch) as device:
        found = work(device)
    same(on_cpu(found), expected)


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, (float, torch.Tensor)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
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
