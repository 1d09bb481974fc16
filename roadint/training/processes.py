"""The processes that torchrun started, of which the first one writes."""

import os

import torch


def is_first() -> bool:
    """Whether this process writes and tells; always where there is one alone."""
    return int(os.environ.get("RANK", "0")) == 0


def meet() -> None:
    """Wait for the other processes, so that what the first one wrote is there for all."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
