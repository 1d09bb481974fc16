"""The storage of prefixes: numbers on the model's device, or in a file mapped into memory."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from roadint.training.prefix.cut_model import CutModel
from roadint.training.prefix.plan import TokenPlan
from roadint.training.prefix.reusable import CannotReuseError

StorageKind = Literal["memory", "hidden states in memory", "disk"]


class Storage:
    """Slots of `width` numbers."""

    def __init__(self, numbers: Shaped[Tensor, "slots width"]) -> None:
        self._numbers = numbers

    @property
    def size(self) -> int:
        """Bytes."""
        return self._numbers.nbytes

    def put(self, slots: Int[Tensor, " slots"], values: Shaped[Tensor, "slots width"]) -> None:
        """Write values."""
        self._numbers[slots.to(self._numbers.device)] = values.to(self._numbers)

    def get(self, slots: Int[Tensor, "*shape"]) -> Shaped[Tensor, "*shape width"]:
        """A copy of the values in some slots."""
        return self._numbers[slots.to(self._numbers.device)]


@dataclass(frozen=True)
class PrefixStorage:
    """The stored prefixes of a data set.

    Attributes:
        kind: Where they are; "hidden states in memory" is without keys and values.
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
                free.
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
            return cls._make("memory", cut, plan, None)
        if cut.skipped and least <= budget:
            return cls._make("hidden states in memory", cut, lesser, None)
        if needed <= free_disk(folder) / 2:
            return cls._make("disk", cut, plan, folder)
        raise CannotReuseError(
            f"{needed / 1e6:.0f} MB needed, {budget / 1e6:.0f} MB allowed in memory, "
            f"{free_disk(folder) / 2e6:.0f} MB on disk"
        )

    @classmethod
    def _make(
        cls, kind: StorageKind, cut: CutModel, plan: TokenPlan, folder: Path | None
    ) -> "PrefixStorage":
        hidden = _room(plan.hidden_count, cut.width, cut, folder)
        prefix = _room(plan.prefix_count, cut.upper.width, cut, folder)
        return cls(kind, plan, Storage(hidden), Storage(prefix))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.hidden.size + self.prefix.size


def free_memory(device: torch.device) -> int:
    """Free bytes on a device for this process, of those that share it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // _processes()


def free_disk(folder: Path) -> int:
    """Free bytes on disk for this process, of those on this machine; 0 where there is no folder."""
    try:
        return shutil.disk_usage(folder).free // _processes()
    except OSError:
        return 0


def _size(cut: CutModel, plan: TokenPlan) -> int:
    numbers = plan.hidden_count * cut.width + plan.prefix_count * cut.upper.width
    return numbers * cut.layout.dtype.itemsize


def _processes() -> int:
    """How many processes torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _room(
    count: int, width: int, cut: CutModel, folder: Path | None
) -> Shaped[Tensor, "count width"]:
    if folder is not None:
        return _mapped(folder, count * width, cut.layout.dtype).view(count, width)
    return torch.empty(count, width, dtype=cut.layout.dtype, device=cut.device)


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
