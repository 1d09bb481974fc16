"""The table of lowered rows: a slot for every composition that was used lately.

A slot holds the two vectors of a composition (`u`, and `v` where some adapter needs it) for all
targets, end to end. A call copies the slots of its rows out of the table, so adding, replacing and
evicting slots never touch what a running call uses.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from roadint.architecture.devices import on_device
from roadint.engines.locks import Lock
from roadint.engines.seen_values import SeenValues
from roadint.errors import RoadError, quoted
from roadint.rotation.rotation import Rotation

_EXPANDED = 1 << 24  # numbers: up to 128 MB of rotations are copied row by row


class Table:
    """The lowered rows of one layout; the least recently used makes room for a new one.

    Args:
        blocks: How many blocks a row has.
        capacity: How many rows the table holds.
        device: The device of the rows.
    """

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
    ) -> tuple[Rotation, Int[Tensor, " rows"] | None]:
        """The rotations of a batch.

        Args:
            keys: One a row.
            make: Makes the rotation of a key that the table does not hold.

        Returns:
            One rotation a row, and None. Or one for every different key, and the index of the one
            that each row takes (None where there is only one).

        Raises:
            RoadError: where a batch has more different keys than the table has slots.
        """
        distinct = list(dict.fromkeys(keys))
        if len(distinct) > self.capacity:
            raise RoadError(
                f"{len(distinct)} different compositions in one batch, room for {self.capacity}: "
                f"expected fewer, or RoadModel(…, capacity={len(distinct)})"
            )
        # Tensors that are made in inference mode can't be used outside of it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            slots = {key: self._slot(key, distinct, make) for key in distinct}
            by_row = len(distinct) > 1 and self._is_worth_copying(len(keys), len(distinct))
            wanted = [slots[key] for key in (keys if by_row else distinct)]
            rotation = self._copy(on_device(wanted, self.device), slots.values())
        if by_row or len(distinct) == 1:
            return rotation, None
        index_of = {key: index for index, key in enumerate(distinct)}
        return rotation, on_device([index_of[key] for key in keys], self.device)

    def _is_worth_copying(self, rows: int, distinct: int) -> bool:
        """Whether to copy a rotation for every row, instead of one for every different key."""
        return rows <= 2 * distinct or rows * self.blocks <= _EXPANDED

    def _copy(self, index: Tensor, slots: Collection[int]) -> Rotation:
        v = None
        if self._v is not None and not self._mirrored.isdisjoint(slots):
            v = self._v.index_select(0, index)
        return Rotation(self._u.index_select(0, index), v)

    def _slot(
        self, key: Hashable, wanted: Sequence[Hashable], make: Callable[[Hashable], Rotation]
    ) -> int:
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key]
        made = make(key)
        slot = self._free(set(wanted))
        self._u[slot] = made.u
        if made.v is not None and self._v is None:
            self._v = torch.zeros_like(self._u)
        if self._v is not None:
            self._v[slot] = 0 if made.v is None else made.v
        if made.v is None:
            self._mirrored.discard(slot)
        else:
            self._mirrored.add(slot)
        self._slots[key] = slot
        return slot

    def _free(self, wanted: Collection[Hashable]) -> int:
        """A slot for a new row: unused, or the least recently used that this call does not need."""
        if len(self._slots) == self.capacity:
            return self._slots.pop(next(key for key in self._slots if key not in wanted))
        slot = len(self._slots)
        if slot == len(self._u):
            slots = min(self.capacity, max(8, 2 * slot))
            self._u = self._grown(self._u, slots)
            self._v = None if self._v is None else self._grown(self._v, slots)
        return slot

    def _grown(self, rows: Tensor, slots: int) -> Tensor:
        larger = torch.zeros(slots, self.blocks, dtype=rows.dtype, device=self.device)
        larger[: len(rows)] = rows
        return larger


class Tables:
    """The tables of a model: one for each layout that its adapters have.

    Args:
        capacity: How many rows a table holds.

    Raises:
        RoadError: for a capacity that is no count.
    """

    def __init__(self, capacity: int = 1024) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise RoadError(
                f"capacity={quoted(capacity)}: expected how many compositions of adapters are held "
                "ready, at least 1"
            )
        self.capacity = capacity
        self._tables: dict[Hashable, Table] = {}
        self._lock = Lock()

    def of(self, layout: Hashable, blocks: int, device: torch.device) -> Table:
        """The table of a layout; a new one where there is none, or the device is another."""
        with self._lock:
            table = self._tables.get(layout)
            if table is None or table.device != device:
                table = self._tables[layout] = Table(blocks, self.capacity, device)
            return table

    def drop_others(self, layouts: Collection[Hashable]) -> None:
        """Drop the tables of all layouts but these."""
        with self._lock:
            self._tables = {key: table for key, table in self._tables.items() if key in layouts}

    def values(self) -> list[Table]:
        """All tables."""
        with self._lock:
            return list(self._tables.values())
