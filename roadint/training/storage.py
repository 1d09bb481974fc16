"""Rows of numbers, many of them: in memory, on the model's device, or in a file that is mapped into memory and leaves no trace."""

import os
import shutil
import tempfile
from pathlib import Path

import psutil
import torch
from torch import Tensor


class NoRoomError(Exception):
    """Neither memory nor disk has the room."""


class Storage:
    """[count, width] numbers, written and read by row. folder: where its file lies; None keeps it on the device."""

    def __init__(
        self,
        count: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        folder: Path | None = None,
    ) -> None:
        if folder is None:
            self._numbers = torch.empty(count, width, dtype=dtype, device=device)
        else:
            self._numbers = _mapped(folder, count * width, dtype).view(count, width)

    def put(self, slots: Tensor, values: Tensor) -> None:
        """Write values [rows, width] to slots [rows]."""
        self._numbers[slots.to(self._numbers.device)] = values.to(self._numbers)

    def rows(self, slots: Tensor) -> Tensor:
        """[…, width]: a copy of the rows in slots […]."""
        return self._numbers[slots.to(self._numbers.device)]


def free_memory(device: torch.device) -> int:
    """Bytes, for each of the processes that share the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // _processes()


def free_disk(folder: Path) -> int:
    """Bytes, for each of the processes of this machine."""
    return shutil.disk_usage(folder).free // _processes()


def _processes() -> int:
    """How many torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _mapped(folder: Path, count: int, dtype: torch.dtype) -> Tensor:
    if not count:
        return torch.empty(0, dtype=dtype)
    size = count * dtype.itemsize
    handle, name = tempfile.mkstemp(prefix="prefix-", suffix=".bin", dir=folder)
    try:
        # A sparse file on a full disk would kill the process when it is written to.
        os.posix_fallocate(handle, 0, size)
        return torch.from_file(name, shared=True, size=count, dtype=dtype)
    except OSError as error:
        raise NoRoomError(f"no file of {size / 1e6:.0f} MB in {folder} ({error})") from error
    finally:
        os.close(handle)
        os.unlink(name)  # the mapping keeps it; a killed process leaves nothing
