"""Whether a table was made from an adapter's values as they are now."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from roadint.adapters.adapter import RoadAdapter
from roadint.engines.locks import Lock


class SeenValues:
    """The values of adapters as they were seen last; a copy starts empty.

    The values themselves are compared: torch's version counters miss fused optimizers, `.data` and
    more. Threads may ask side by side.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[RoadAdapter, tuple[list[Tensor], object]] = (
            WeakKeyDictionary()
        )
        self._lock = Lock()

    def state_of(self, adapter: RoadAdapter) -> object:
        """What stands for an adapter's values; one wait for the device.

        Args:
            adapter: The adapter.

        Returns:
            An object that equals itself alone, so that it is right in another process too: the same
            one as long as θ, α and the subspace are the same numbers on the same device, and
            another one for all other values of any adapter.
        """
        now = [
            tensor.detach()
            for tensor in (adapter.theta, adapter.alpha, adapter.held)
            if tensor is not None
        ]
        with self._lock, torch.inference_mode(False), torch.no_grad():
            before, state = self._seen.get(adapter, ([], None))
            if state is None or not _same(now, before):
                state = object()
                self._seen[adapter] = [tensor.clone() for tensor in now], state
            return state

    def __reduce__(self) -> tuple[type["SeenValues"], tuple[()]]:
        return SeenValues, ()


def _same(now: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether these are equal numbers, on the same device."""
    return len(now) == len(before) and all(
        tensor.shape == earlier.shape
        and tensor.device == earlier.device
        and torch.equal(tensor, earlier)
        for tensor, earlier in zip(now, before, strict=True)
    )
