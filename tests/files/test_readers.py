"""What anybody may have written is read with bounds, or refused in one line."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from roadint.errors import RoadError
from roadint.files.readers import parse_json, read_header, read_json, read_text


def test_text_with_and_without_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "recipe"
    for content in (b"\xef\xbb\xbfsteps: 3", b"steps: 3"):
        file.write_bytes(content)
        assert read_text(file, "recipe", 99) == "steps: 3"
    for content, message in ((b"x" * 100, "has over 99 bytes"), (b"\xff", "can't be read")):
        file.write_bytes(content)
        with pytest.raises(RoadError, match=f"recipe '.*' {message}"):
            read_text(file, "recipe", 99)
    for path in (tmp_path, tmp_path / "nowhere", Path("a\0b")):
        with pytest.raises(RoadError, match="can't be read"):
            read_text(path, "recipe", 99)


def test_json(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "x") == {"a": [1, None]}
    with pytest.raises(RoadError, match="can't be read"):
        read_json(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "truncated or no JSON"),
        (b"\xff", "truncated or no JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "says 'a' twice"),
        (b"[" * 100 + b"]" * 100, "nested too deep"),
        (b"[" * 100_000, "nested too deep|truncated"),
        (b'"\\ud800"', "truncated or no JSON"),
        (b"9" * 10_000, "truncated or no JSON"),
        (b"[" + b"1," * 1_000_001 + b"1]", "is too large"),
    ],
)
def test_json_that_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(RoadError, match=f"^x .*({message})"):
        parse_json(content, "x")


def test_headers_of_safetensors() -> None:
    content = save({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)})
    header = read_header(io.BytesIO(content), len(content), "x")
    assert header == {"a": ("F32", (2, 3)), "b": ("BF16", (4,))}
    for broken, size in ((content[:-1], len(content) - 1), (b"", 0), (content, 10**15)):
        with pytest.raises(RoadError, match="x is truncated or was altered"):
            read_header(io.BytesIO(broken), size, "x")


@pytest.mark.parametrize(
    "described",
    [[], {"a": 5}, {"a": {"dtype": "F33", "shape": [1]}}, {"a": {"dtype": "F32", "shape": [-1]}}],
)
def test_headers_that_are_none(described: Any) -> None:
    text = json.dumps(described).encode()
    content = struct.pack("<Q", len(text)) + text
    with pytest.raises(RoadError, match="^x.*(no safetensors file|expected the dtype and shape)"):
        read_header(io.BytesIO(content), len(content), "x")
