"""The storage of prefixes: on the model's device, on the host, or in a file mapped into memory."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import get_worker_info

from roadint.training.memory import free_memory, processes
from roadint.training.prefix.ahead import OnHost
from roadint.training.prefix.cut_model import CutModel
from roadint.training.prefix.plan import TokenPlan
from roadint.training.prefix.reusable import CannotReuseError

StorageKind = Literal["memory", "host memory", "hidden states in memory", "disk"]
_HOST = torch.device("cpu")


class Storage:
    """Slots of `width` numbers.

    Args:
        numbers: The slots.
        device: The device that needs them.
        in_file: Whether they are in a file.
    """

    def __init__(
        self, numbers: Shaped[Tensor, "slots width"], device: torch.device, *, in_file: bool = False
    ) -> None:
        self._numbers, self._device = numbers, device
        self._fetched = in_file or numbers.device.type != device.type

    def __getstate__(self) -> dict[str, Any]:
        """What a process gets that makes batches: of numbers on the device, none."""
        return vars(self) | ({} if self._fetched else {"_numbers": torch.empty(0)})

    @property
    def size(self) -> int:
        """Bytes."""
        return self._numbers.nbytes

    def put(self, slots: Int[Tensor, " slots"], values: Shaped[Tensor, "slots width"]) -> None:
        """Write values."""
        self._numbers[slots.to(self._numbers.device)] = values.to(self._numbers)

    def for_batch(self, slots: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"] | OnHost:
        """What a batch holds of some slots: their numbers, where they come from the host.

        Otherwise the slots themselves: a process that makes batches must not use the device.
        """
        if not self._fetched:
            return slots
        shape = *slots.shape, self._numbers.shape[-1]
        # Only this process may ask for memory that the device reads.
        pinned = self._device.type == "cuda" and get_worker_info() is None
        numbers = torch.empty(shape, dtype=self._numbers.dtype, pin_memory=pinned)
        torch.index_select(self._numbers, 0, slots.flatten(), out=numbers.flatten(0, -2))
        return OnHost(numbers)

    def get(self, held: Int[Tensor, "*shape"] | OnHost) -> Shaped[Tensor, "*shape width"]:
        """The numbers on the device, a copy, of what a batch holds."""
        if isinstance(held, OnHost):
            return held.on(self._device)
        return self._numbers[held.to(self._device, non_blocking=True)]


@dataclass(frozen=True)
class PrefixStorage:
    """The stored prefixes of a data set.

    Attributes:
        kind: Where they are: in the memory of the model's device (or there without keys and values,
            "hidden states in memory"), in that of the host, or in files.
        plan: Which tokens are stored, and in which slots.
        hidden: The hidden states that enter the layers above the cut.
        prefix: The keys and values of the layers above the cut.
    """

    kind: StorageKind
    plan: TokenPlan
    hidden: Storage
    prefix: Storage

    @classmethod
    def allocate(
        cls, cut: CutModel, plan: TokenPlan, memory: float | None, folder: Path
    ) -> "PrefixStorage":
        """Choose what is stored where, and make room for it.

        Args:
            cut: The model, with the widths and the dtype of what is stored.
            plan: What to store where there is room.
            memory: The budget in bytes, on the model's device; by default a quarter of what is
                free. Of the host's memory, where that is another, a quarter may be used.
            folder: The folder for files, where the budget is too small for hidden states.

        Returns:
            The storage, with nothing in it yet.

        Raises:
            CannotReuseError: where neither memory nor disk has room.
        """
        lesser = plan.hidden_states_alone()
        budget = free_memory(cut.device) / 4 if memory is None else memory
        needed, least = _size(cut, plan), _size(cut, lesser)
        if needed <= budget:
            return cls._make("memory", cut, plan)
        if cut.device.type != "cpu" and needed <= free_memory(_HOST) / 4:
            return cls._make("host memory", cut, plan)
        if cut.skipped and least <= budget:
            return cls._make("hidden states in memory", cut, lesser)
        if needed <= free_disk(folder) / 2:
            return cls._make("disk", cut, plan, folder)
        raise CannotReuseError(
            f"{needed / 1e6:.0f} MB needed, {budget / 1e6:.0f} MB allowed in memory, "
            f"{free_disk(folder) / 2e6:.0f} MB on disk"
        )

    @classmethod
    def _make(
        cls, kind: StorageKind, cut: CutModel, plan: TokenPlan, folder: Path | None = None
    ) -> "PrefixStorage":
        def room(count: int, width: int) -> Storage:
            dtype = cut.layout.dtype
            if folder is not None:
                numbers = _mapped(folder, count * width, dtype).view(count, width)
                return Storage(numbers, cut.device, in_file=True)
            device = _HOST if kind == "host memory" else cut.device
            return Storage(torch.empty(count, width, dtype=dtype, device=device), cut.device)

        hidden = room(plan.hidden_count, cut.width)
        return cls(kind, plan, hidden, room(plan.prefix_count, cut.upper.width))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.hidden.size + self.prefix.size


def free_disk(folder: Path) -> int:
    """Free bytes on disk for this process, of those on this machine; 0 where there is no folder."""
    try:
        return shutil.disk_usage(folder).free // processes()
    except OSError:
        return 0


def _size(cut: CutModel, plan: TokenPlan) -> int:
    numbers = plan.hidden_count * cut.width + plan.prefix_count * cut.upper.width
    return numbers * cut.layout.dtype.itemsize


def _mapped(folder: Path, count: int, dtype: torch.dtype) -> Shaped[Tensor, " count"]:
    if not count:
        return torch.empty(0, dtype=dtype)
    size = count * dtype.itemsize
    try:
        handle, name = tempfile.mkstemp(prefix="prefix-", suffix=".bin", dir=folder)
        try:
            # A sparse file on a full disk would kill the process when it is written to.
            os.posix_fallocate(handle, 0, size)
            return torch.from_file(name, shared=True, size=count, dtype=dtype)
        finally:
            os.close(handle)
            os.unlink(name)  # the mapping keeps it; a killed process leaves nothing
    except OSError as error:
        reason = f"no file of {size / 1e6:.0f} MB in {folder} ({error})"
        raise CannotReuseError(reason) from error
