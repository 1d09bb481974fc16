"""Free memory, and how many rows of a step fit into it at once."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

_SPARE = 1 / 3  # of what is free: what a step holds for a moment, and fragments


def free_memory(device: torch.device) -> int:
    """Free bytes on a device for this process, of those that share it."""
    if device.type == "cuda":
        # What torch holds and does not use is free, too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return _free_on_host() // processes()


def _free_on_host() -> int:
    """What the machine has left, or the containers that this process is in, if that is less."""
    free = int(psutil.virtual_memory().available)
    for limit, used, unused in _cgroups():
        with suppress(OSError, ValueError):  # "max" is none
            most = int(limit.read_text())
            stat = dict(line.split() for line in unused.read_text().splitlines())
            free = min(free, most - int(used.read_text()) + int(stat.get("inactive_file", 0)))
    return max(0, free)


def _cgroups() -> Iterator[tuple[Path, Path, Path]]:
    """Files with the limit of a group of processes, what it uses, and what it could give up."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        if "memory" in controllers.split(","):  # version 1
            root, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif controllers:
            continue
        group = root / inside.lstrip("/")
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            yield folder / names[0], folder / names[1], folder / "memory.stat"


def processes() -> int:
    """How many processes torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rows_that_fit(free: float, kept: float, step: int) -> int:
    """How many rows run at once: the largest divisor of a step that fits, at least 1.

    Args:
        free: The bytes that are free.
        kept: The bytes that the longest row keeps for its gradient.
        step: The rows of a step.

    Examples:
        >>> rows_that_fit(1200, kept=180, step=12)
        4
    """
    room = free * (1 - _SPARE)
    fitting = [rows for rows in range(1, step + 1) if step % rows == 0 and rows * kept <= room]
    return max(fitting, default=1)


def kept_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """The bytes that autograd keeps for the gradient of a loss, beside the model's own tensors.

    They are counted, not estimated, so whatever the architecture, its adapters, its dtype and its
    attention keep is in them.

    Args:
        model: The model.
        loss: Computes the loss.
    """
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor.detach()  # the same memory, which therefore stays in use

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = loss()
    del result  # only now may memory be used again that was counted
    return sum(kept.values())
