"""Any value becomes one that JSON has, and never an error."""

import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadint.files.paths import is_file, is_folder
from roadint.files.plain_json import plain


class Colour(enum.Enum):
    RED = ("r", 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (np.bool_(True), True),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (float("inf"), "inf"),
        (Path("a/b"), "a/b"),
        (slice(0, 16), "[0, 16)"),
        (slice(-8, None), "[d - 8, d)"),
        (torch.bfloat16, "bfloat16"),
        (torch.arange(3), [0, 1, 2]),
        (torch.tensor(1.5), 1.5),
        (np.zeros((1, 2)), [[0.0, 0.0]]),
        (range(3), [0, 1, 2]),
        ({3, 1}, [1, 3]),
        (Colour.RED, ["r", 1]),
        ({1: (2, None)}, {"1": [2, None]}),
        ("\ud800", "\\ud800"),
        (b"bytes", "b'bytes'"),
    ],
)
def test_values(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False).encode()


@pytest.mark.parametrize(
    "value",
    [object(), 10**400, torch.empty(3, device="meta"), torch.zeros(200, 200), range(10**9), lambda: 0],
)  # fmt: skip
def test_what_is_too_much_is_a_line(value: Any) -> None:
    assert isinstance(plain(value), str)
    assert len(plain(value)) <= 100


def test_depth_is_bounded() -> None:
    loop: list[Any] = []
    loop.append(loop)
    json.dumps(plain(loop))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_anything_can_be_written(value: Any) -> None:
    json.dumps(plain(value), allow_nan=False, ensure_ascii=False).encode()


def test_names_that_no_file_can_have_are_none(tmp_path: Path) -> None:
    for name in ("a\0b", "x" * 5_000, "nowhere"):
        assert not is_file(tmp_path / name)
        assert not is_folder(tmp_path / name)
    assert is_folder(tmp_path)
