"""Whether an adapter still has the values that a table was made from."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from roadint.adapters.adapter import RoadAdapter
from roadint.engines.locks import Lock


class SeenValues:
    """The values of adapters when they were last asked about; a copy starts empty.

    The values themselves are compared, since torch's version counters miss fused optimizers,
    `.data` and more. Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[RoadAdapter, tuple[list[Tensor], object]] = (
            WeakKeyDictionary()
        )
        self._lock = Lock()

    def state_of(self, adapter: RoadAdapter) -> object:
        """An object that stands for an adapter's current values; waits once for the device.

        Args:
            adapter: The adapter.

        Returns:
            The same object as long as θ, α and the subspace are the same numbers on the same
            device; a new one otherwise. It equals itself alone, also in another process.
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
    """Whether the tensors are equal, on the same device."""
    return len(now) == len(before) and all(
        tensor.shape == earlier.shape
        and tensor.device == earlier.device
        and torch.equal(tensor, earlier)
        for tensor, earlier in zip(now, before, strict=True)
    )
