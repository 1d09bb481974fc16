"""Any values as JSON has them, for what a checkpoint tells of its training: text, numbers, lists and mappings, never an error."""

import enum
import math
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from roadint.errors import quoted

_MOST = 10_000  # numbers of a tensor or range that are written out
_DEEPEST = 24


def plain(value: Any, depth: int = 0) -> Any:
    """Tuples, sets, ranges and small tensors as lists, slices as ranges of dims, paths as text; a line about what is none of these.

    >>> plain({"subspaces": {"a": slice(0, 16)}, "layers": (1, 2), "loss": float("nan")})
    {'subspaces': {'a': '[0, 16)'}, 'layers': [1, 2], 'loss': 'nan'}
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, (str, os.PathLike)):
        return _text(os.fspath(value))
    if isinstance(value, (int, np.integer)):
        return int(value) if int(value).bit_length() < 1000 else quoted(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, slice):
        return slice_text(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if (
        isinstance(value, (torch.Tensor, np.ndarray))
        and math.prod(value.shape) <= _MOST
        and not getattr(value, "is_meta", False)
    ):
        return plain(value.tolist(), depth + 1)
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {_text(key): plain(each, depth + 1) for key, each in value.items()}
    if depth < _DEEPEST and isinstance(value, Set):
        return sorted((plain(each, depth + 1) for each in value), key=str)
    if (
        depth < _DEEPEST
        and isinstance(value, Sequence)
        and not isinstance(value, (bytes, bytearray))
        and len(value) <= 1_000_000
    ):
        return [plain(each, depth + 1) for each in value]
    return quoted(value)


def slice_text(dims: slice) -> str:
    """A slice of dims in the grammar of subspaces: "[0, 16)", "[8, d)", "[d - 8, d)"."""
    if dims.step not in (None, 1):
        return quoted(dims)
    start, stop = (
        f"d - {-end}" if isinstance(end, int) and end < 0 else f"{end}"
        for end in (dims.start or 0, dims.stop)
    )
    return f"[{start}, {'d' if dims.stop is None else stop})"


def _text(value: Any) -> str:
    """Text that can be written as UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode()
