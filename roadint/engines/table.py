"""The rotations that batches choose from: a table with a slot for every composition that was used lately.

A slot holds the two vectors of a composition (`u`, and `v` where some adapter needs it) for all targets, end to end. A batch
copies the slots of its rows out of the table, so adding, replacing and evicting never touch what a running call uses.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence

import torch
from torch import Tensor

from roadint.engines.locks import Lock
from roadint.engines.values import SeenValues
from roadint.errors import RoadError
from roadint.rotation.rotation import Rotation

_EXPANDED = (
    1 << 24
)  # numbers: up to 128 MB of rotations are laid out row by row, more are looked up layer by layer


class Bank:
    """At most `capacity` compositions of one layout of `blocks` blocks; the least recently used one makes room for a new one."""

    def __init__(self, blocks: int, capacity: int, device: torch.device) -> None:
        self.blocks, self.capacity, self.device = blocks, capacity, device
        self._slots: OrderedDict[Hashable, int] = OrderedDict()
        self._u = torch.empty(0, blocks, dtype=torch.complex64, device=device)
        self._v: Tensor | None = None
        self._mirrored: set[int] = set()  # the slots whose v is not zero
        self._lock = Lock()
        self.seen = SeenValues()

    def __len__(self) -> int:
        return len(self._slots)

    def rows(
        self, keys: Sequence[Hashable], make: Callable[[Hashable], Rotation]
    ) -> tuple[Rotation, Tensor | None]:
        """The rotations of the rows with these keys; `make` is asked for those that the table does not hold.

        Returns u, v [rows, blocks] and None, or [different keys, blocks] and [rows] int, which of them each row takes (None where
        there is one). Raises RoadError where a batch has more different keys than the table has slots.
        """
        distinct = list(dict.fromkeys(keys))
        if len(distinct) > self.capacity:
            raise RoadError(
                f"{len(distinct)} different compositions in one batch, room for {self.capacity}: "
                f"expected fewer, or RoadModel(…, capacity={len(distinct)})"
            )
        # A table that is made or written in inference mode could not be used outside of it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            slots = {key: self._slot(key, distinct, make) for key in distinct}
            laid_out = len(distinct) > 1 and (
                len(keys) <= 2 * len(distinct) or len(keys) * self.blocks <= _EXPANDED
            )
            wanted = torch.tensor(
                [slots[key] for key in (keys if laid_out else distinct)], device=self.device
            )
            mirrored = self._v is not None and not self._mirrored.isdisjoint(slots.values())
            v = self._v.index_select(0, wanted) if mirrored and self._v is not None else None
            rotation = Rotation(self._u.index_select(0, wanted), v)
        if laid_out or len(distinct) == 1:
            return rotation, None
        place = {key: index for index, key in enumerate(distinct)}
        return rotation, torch.tensor([place[key] for key in keys], device=self.device)

    def _slot(
        self, key: Hashable, wanted: Sequence[Hashable], make: Callable[[Hashable], Rotation]
    ) -> int:
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key]
        made = make(key)
        if len(self._slots) < self.capacity:
            slot = len(self._slots)
            if slot == len(self._u):
                self._grow(min(self.capacity, max(8, 2 * slot)))
        else:
            needed = set(wanted)
            slot = self._slots.pop(next(each for each in self._slots if each not in needed))
        self._u[slot] = made.u
        if made.v is not None and self._v is None:
            self._v = torch.zeros_like(self._u)
        if self._v is not None:
            self._v[slot] = 0 if made.v is None else made.v
            (self._mirrored.discard if made.v is None else self._mirrored.add)(slot)
        self._slots[key] = slot
        return slot

    def _grow(self, slots: int) -> None:
        for name in ("_u", "_v"):
            old = getattr(self, name)
            if old is not None:
                new = torch.zeros(slots, self.blocks, dtype=old.dtype, device=self.device)
                new[: len(old)] = old
                setattr(self, name, new)


class Banks:
    """The tables of a model: one for each place that adapters share."""

    def __init__(self) -> None:
        self._banks: dict[Hashable, Bank] = {}
        self._lock = Lock()

    def of(self, place: Hashable, blocks: int, capacity: int, device: torch.device) -> Bank:
        """The table of a place; a new one where there is none, or the adapters have moved."""
        with self._lock:
            found = self._banks.get(place)
            if found is None or found.device != device:
                found = self._banks[place] = Bank(blocks, capacity, device)
            return found

    def keep(self, places: Collection[Hashable]) -> None:
        """Drop the tables of other places."""
        with self._lock:
            self._banks = {place: bank for place, bank in self._banks.items() if place in places}

    def values(self) -> list[Bank]:
        """All tables."""
        with self._lock:
            return list(self._banks.values())
