"""Merging lets the device run ahead: it waits as often for one layer as for all."""

from collections import Counter
from typing import Any

import pytest
import torch

from roadint import RoadModel
from tests.device.helpers import turned
from tests.helpers import build
from tests.other_device import waits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"variant": "road_4", "lora_rank": 2}], ids=str)
def test_waits(
    arguments: dict[str, Any], keep: bool, dtype: torch.dtype, device: torch.device
) -> None:
    road = RoadModel(build().to(device, dtype))
    road.add_adapter("one", targets=["q_proj"], layers=[0], **arguments)
    road.add_adapter("every", **arguments)
    turned(road.adapters)

    def waited(name: str) -> Counter[str]:
        with waits() as counted:
            road.merge(name, keep=keep)
            road.unmerge()
        return Counter(counted)

    assert waited("every") == waited("one")
    assert waited("one").total() <= 5
