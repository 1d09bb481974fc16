"""The table of one engine in one process: lowered rows, and which token of the step takes which."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from roadint.engines.vllm.rows.places import Places
from roadint.engines.vllm.rows.slots import Slots
from roadint.rotation.rotation import Rotation

_BLOCKS = 1 << 18  # of rows that are made at once
CHUNK = 1 << 17
"""Numbers that operations on a CPU work on at a time: they stay in its cache."""


class ServedTable:
    """Rows of rotations in memory that compiled graphs read; it stays where it is.

    Args:
        places: The places whose blocks a row holds.
        capacity: How many rows it holds: as many as one step can need.
        tokens: How many tokens a step has, at most.
        mirrored: Whether a row may need v.
        device: Where it lies.
    """

    u: Float[Tensor, "slots blocks 2"]
    v: Float[Tensor, "slots blocks 2"] | None
    index: Int[Tensor, " tokens"]
    """The row of every token of the step; −1 for a token that stays as it is."""

    def __init__(
        self, places: Places, capacity: int, tokens: int, mirrored: bool, device: torch.device
    ) -> None:
        self.places = places
        with torch.inference_mode(False):
            shape = (capacity, places.blocks, 2)
            self.u = torch.zeros(shape, dtype=torch.float32, device=device)
            self.v = torch.zeros(shape, dtype=torch.float32, device=device) if mirrored else None
            self.index = torch.full((tokens,), -1, dtype=torch.int64, device=device)
        self._slots = Slots(capacity)
        self._acts = np.zeros((capacity, len(places)), dtype=bool)
        self._mirrors = np.zeros(capacity, dtype=bool)
        if device.type == "cpu":
            with torch.inference_mode(False):
                self.scratch = torch.empty(CHUNK, dtype=torch.float32)
                self.scratch_rows = torch.empty(CHUNK // 2, dtype=torch.complex64)
        self._written = 0  # entries of the index that may not be −1
        self._step_acts: Any = None
        self.clear_step()

    # What the step needs. On a CPU operations read it; on a GPU graphs read the index.

    step_tokens: Int[Tensor, " edited"]
    """The numbers of the tokens that are turned."""
    step_slots: Int[Tensor, " edited"]
    """The row that each of them takes."""
    step_slot: int | None
    """The row that all of them take; None where they take several."""
    step_spans: Sequence[tuple[int, int, int]]
    """Tokens after another that are all turned: the first, the one after the last, and the number
    of the first among all that are turned."""

    @property
    def busy(self) -> bool:
        """Whether a token of the step is turned."""
        return len(self.step_tokens) > 0

    def acts_at(self, place: int) -> bool:
        """Whether a token of the step is turned at the place of a number."""
        return bool(self._step_acts[place])

    def clear_step(self) -> None:
        """Nothing is turned in the step that comes."""
        self.step_tokens = self.step_slots = torch.empty(0, dtype=torch.int64)
        self.step_slot, self.step_spans = None, ()
        self.step_mirrors = False
        self._step_acts = np.zeros(len(self.places), dtype=bool)
        if self._written:
            self.index[: self._written].fill_(-1)
            self._written = 0

    def set_step(
        self,
        tokens: Int[np.ndarray, " edited"],
        keys: Sequence[Hashable],
        of_token: Int[np.ndarray, " edited"],
        make: Callable[[Sequence[Any]], Rotation],
        total: int,
    ) -> None:
        """Say what is turned in the step that comes.

        Args:
            tokens: The numbers of the tokens that are turned, in order.
            keys: What rows are made of, all different.
            of_token: For each of these tokens the number of its key.
            make: Makes the rows of keys that the table does not hold.
            total: How many tokens the step has.
        """
        if not len(tokens):
            self.clear_step()
            return
        slots, new = self._slots.take(keys)
        try:
            most = max(1, _BLOCKS // max(1, self.places.blocks))
            for start in range(0, len(new), most):
                some = new[start : start + most]
                self._write([slots[key] for key in some], make(some))
        except BaseException:
            self._slots.drop(new)  # what was not written must not be taken for it later
            raise
        numbers = np.array([slots[key] for key in keys], dtype=np.int64)
        slot_of_token = numbers[of_token]
        self._step_acts = self._acts[numbers].any(axis=0)
        self.step_mirrors = bool(self._mirrors[numbers].any())
        self.step_tokens = torch.from_numpy(tokens)
        self.step_slots = torch.from_numpy(slot_of_token)
        self.step_slot = slots[keys[0]] if len(keys) == 1 else None
        self.step_spans = _spans(tokens)
        self._set_index(tokens, slot_of_token, total)

    def _set_index(
        self, tokens: Int[np.ndarray, " edited"], slots: Int[np.ndarray, " edited"], total: int
    ) -> None:
        index = np.full(max(total, self._written), -1, dtype=np.int64)
        index[tokens] = slots
        self.index[: len(index)].copy_(_moved(torch.from_numpy(index), self.index.device))
        self._written = total

    def _write(self, slots: Sequence[int], rows: Rotation) -> None:
        u = torch.view_as_real(rows.u)
        v = None if rows.v is None else torch.view_as_real(rows.v)
        self._acts[slots] = _acting(u, v, self.places)
        self._mirrors[slots] = False if v is None else (v != 0).flatten(1).any(dim=1).numpy()
        device = self.u.device
        index = _moved(torch.tensor(slots), device)
        for table, part in ((self.u, u), (self.v, v)):
            if table is not None and part is None:
                table.index_fill_(0, index, 0)
            elif table is not None and part is not None:
                table.index_copy_(0, index, _moved(part, device))


def _moved(part: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, for which nothing waits."""
    if device.type == "cuda":  # pinned memory is not reused before the copy is done
        part = part.contiguous().pin_memory()
    return part.to(device, non_blocking=True)


def _acting(u: Tensor, v: Tensor | None, places: Places) -> Bool[np.ndarray, "rows places"]:
    """Which places each row turns."""
    moved = (u[..., 0] != 1) | (u[..., 1] != 0)
    if v is not None:
        moved |= (v != 0).any(dim=-1)
    if not len(places):
        return np.zeros((len(u), 0), dtype=bool)
    firsts = [place.first for place in places.by_key.values()]
    acting: Bool[np.ndarray, "rows places"] = np.logical_or.reduceat(moved.numpy(), firsts, axis=1)
    return acting


def _spans(tokens: Int[np.ndarray, " edited"]) -> list[tuple[int, int, int]]:
    starts = np.concatenate(([0], np.flatnonzero(np.diff(tokens) != 1) + 1))
    stops = np.concatenate((starts[1:], [len(tokens)]))
    return list(
        zip(tokens[starts].tolist(), (tokens[stops - 1] + 1).tolist(), starts.tolist(), strict=True)
    )
