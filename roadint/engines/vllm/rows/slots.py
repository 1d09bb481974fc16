"""Slots of a table: the least recently used makes room, never one that the batch needs."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable


class Slots:
    """Which row of a table holds what.

    Args:
        capacity: How many slots there are: at least as many as one batch can need.
        first: The number of the first slot.
    """

    def __init__(self, capacity: int, first: int = 0) -> None:
        self.capacity = capacity
        self._free = list(range(first + capacity - 1, first - 1, -1))
        self._slots: OrderedDict[Hashable, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, keys: Iterable[Hashable]) -> tuple[dict[Hashable, int], list[Hashable]]:
        """The slots of all that a batch needs.

        Args:
            keys: What the batch needs, at most `capacity` different ones.

        Returns:
            The slot of every key, and the keys that are new, whose slots have to be written.
        """
        wanted = dict.fromkeys(keys)
        new = [key for key in wanted if key not in self._slots]
        for key in wanted:
            if key in self._slots:
                self._slots.move_to_end(key)
        for key in new:
            # What the batch needs has moved to the end, so the first is none of it.
            slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            self._slots[key] = slot
        return {key: self._slots[key] for key in wanted}, new

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Free the slots of keys that could not be written."""
        for key in keys:
            self._free.append(self._slots.pop(key))
