"""Free memory, and what a training keeps in it for its gradients."""

import os

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Free bytes on a device for this process, of those that share it."""
    if device.type == "cuda":
        # What torch holds and does not use is free, too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return int(psutil.virtual_memory().available) // processes()


def processes() -> int:
    """How many processes torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
