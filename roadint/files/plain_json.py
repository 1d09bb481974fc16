"""Conversion of any value to plain JSON, for summaries in checkpoints; it never fails."""

import enum
import math
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from roadint.errors import quoted
from roadint.grammar.ranges import write_slice

_MOST = 10_000  # numbers of a tensor that are written out
_LONGEST = 1_000_000  # items of a list
_DEEPEST = 24  # lists and mappings in each other


def plain(value: Any, depth: int = 0) -> Any:
    """Convert a value to text, numbers, lists and mappings.

    Args:
        value: Anything.
        depth: How many lists and mappings it is inside of.

    Returns:
        Tuples, sets, ranges and small tensors as lists, slices as ranges of dims, paths as text;
        any other object as a line about it.

    Examples:
        >>> plain({"subspaces": {"a": slice(0, 16)}, "layers": (1, 2), "loss": float("nan")})
        {'subspaces': {'a': '[0, 16)'}, 'layers': [1, 2], 'loss': 'nan'}
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (torch.Tensor, np.ndarray)):
        small = math.prod(value.shape) <= _MOST and not getattr(value, "is_meta", False)
        return plain(value.tolist(), depth + 1) if small else quoted(value)
    if isinstance(value, (Mapping, Set, Sequence)) and not isinstance(
        value, (str, bytes, bytearray)
    ):
        return _plain_items(value, depth) if depth < _DEEPEST else quoted(value)
    return _plain_scalar(value)


def _plain_items(value: Mapping[Any, Any] | Set[Any] | Sequence[Any], depth: int) -> Any:
    if isinstance(value, Mapping):
        return {_text(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item, depth + 1) for item in value), key=str)
    return [plain(item, depth + 1) for item in value] if len(value) <= _LONGEST else quoted(value)


def _plain_scalar(value: Any) -> Any:
    match value:
        case None:
            return None
        case bool() | np.bool_():
            return bool(value)
        case str() | os.PathLike():
            return _text(os.fspath(value))
        case int() | np.integer():
            return int(value) if int(value).bit_length() < 1000 else quoted(value)
        case float() | np.floating():
            return float(value) if math.isfinite(value) else str(float(value))
        case slice():
            return write_slice(value)
        case torch.dtype():
            return str(value).removeprefix("torch.")
    return quoted(value)


def _text(value: Any) -> str:
    """Text that can be written as UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode()
