"""Numbers that the host makes for a call, on the device that needs them."""

from typing import Any

import torch
from torch import Tensor


def on_device(numbers: Any, device: torch.device | None) -> Tensor:
    """A list of numbers, or a tensor, on a device; the host does not wait for a GPU's other work.

    Args:
        numbers: What `torch.as_tensor` takes.
        device: The device; the numbers' own by default.
    """
    tensor = torch.as_tensor(numbers)
    if device is None or tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        # From pageable memory, copies wait until the device has done all that came before.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
