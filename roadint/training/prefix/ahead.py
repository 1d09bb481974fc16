"""Numbers of a batch on the host, copied to the device ahead of the step that needs them."""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


class OnHost:
    """Numbers of one batch in the host's memory.

    It is no tensor, so that neither the data loader nor Trainer moves it: a copy between two steps
    would wait for the first or delay the second. `start` copies beside what the device computes.

    Args:
        numbers: On the CPU.
    """

    def __init__(self, numbers: Shaped[Tensor, "*shape width"]) -> None:
        self._numbers = numbers
        self._copy: Tensor | None = None
        self._copied: Any = None  # the event after which the copy is there

    def pin_memory(self) -> "OnHost":
        """The same numbers, where a device can read them beside other work; DataLoader calls it."""
        return OnHost(self._numbers.pin_memory())

    def start(self, stream: torch.cuda.Stream) -> None:
        """Begin to copy, in a stream of its own.

        Args:
            stream: The stream, of the device that needs the numbers.
        """
        with torch.cuda.stream(stream):
            self._copy = self._numbers.to(stream.device, non_blocking=True)
            self._copied = stream.record_event()

    def on(self, device: torch.device) -> Shaped[Tensor, "*shape width"]:
        """The numbers on a device, for what it computes from now on.

        Args:
            device: That of `start`, where it was called.
        """
        if self._copy is None:
            return self._numbers.to(device, non_blocking=True)
        current = torch.cuda.current_stream(device)
        current.wait_event(self._copied)
        self._copy.record_stream(current)  # else the memory could serve the next copy too early
        return self._copy
