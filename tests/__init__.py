"""The tests, of which each folder has those of a folder of the package."""

import os

import torch

# Before anything imports Triton: without a GPU, its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
