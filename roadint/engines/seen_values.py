"""Whether adapters still have the values that a table was made from."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from roadint.adapters.adapter import RoadAdapter
from roadint.engines.locks import Lock


class SeenValues:
    """The values when they were last asked about; a copy starts empty.

    The values themselves are compared, since torch's version counters miss fused optimizers,
    `.data` and more. Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[RoadAdapter, tuple[list[Tensor], object]] = (
            WeakKeyDictionary()
        )
        self._lock = Lock()

    def states_of(self, adapters: Sequence[RoadAdapter]) -> list[object]:
        """For each adapter an object that stands for its current values.

        It waits once for the device, however many there are.

        Args:
            adapters: The adapters.

        Returns:
            The same objects as long as the values are the same numbers on the same device; new
            ones otherwise. Such an object equals itself alone, also in another process.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            now = [[tensor.detach() for tensor in adapter.acting_values()] for adapter in adapters]
            before = [self._seen.get(adapter, ([], None)) for adapter in adapters]
            pairs = [(values, seen) for values, (seen, _) in zip(now, before, strict=True)]
            states = []
            for adapter, values, (_, state), same in zip(
                adapters, now, before, _same(pairs), strict=True
            ):
                if state is None or not same:
                    state = object()
                    self._seen[adapter] = [tensor.clone() for tensor in values], state
                states.append(state)
            return states

    def __reduce__(self) -> tuple[type["SeenValues"], tuple[()]]:
        return SeenValues, ()


def _same(pairs: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> list[bool]:
    """For each pair of lists whether the tensors are equal, on the same device."""
    answers: list[bool] = []
    waiting: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for number, (now, before) in enumerate(pairs):
        alike = len(now) == len(before) and all(
            tensor.shape == earlier.shape and tensor.device == earlier.device
            for tensor, earlier in zip(now, before, strict=True)
        )
        for tensor, earlier in zip(now, before, strict=True) if alike else ():
            if tensor.device.type == "cpu":
                alike = alike and torch.equal(tensor, earlier)
            else:
                equal = (tensor == earlier).all()
                waiting.setdefault(tensor.device, []).append((number, equal))
        answers.append(alike)
    for equal_to in waiting.values():
        flags = torch.stack([equal for _, equal in equal_to]).tolist()
        for (number, _), equal in zip(equal_to, flags, strict=True):
            answers[number] = answers[number] and equal
    return answers
