"""Readers of text, JSON and safetensors from untrusted files: bounded, and checked before use."""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

from roadint.errors import RoadError, first_line, quoted

MOST_JSON = 16 << 20  # bytes: hundreds of adapters of a large model
_MOST_VALUES = 1_000_000
_DEEPEST = 64  # lists and mappings in each other

_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("F64", "I64", "U64"), 64),
}

# By name: the dtype as safetensors writes it ("F32"), and the shape.
Header = dict[str, tuple[str, tuple[int, ...]]]


def read_text(path: Path, what: str, most: int) -> str:
    """Read a text file, with or without a byte-order mark.

    Args:
        path: The path of the file.
        what: The name of the file in the message, such as "recipe".
        most: How many bytes are allowed.

    Returns:
        The text.

    Raises:
        RoadError: where it can't be read, is longer, or is no text in UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise RoadError(
                f"{what} {quoted(str(path))} has over {most:,} bytes: expected a shorter file"
            )
        return content.decode("utf-8-sig")
    except RoadError:
        raise
    except (OSError, ValueError) as error:  # no UTF-8 is a ValueError, and so is a name with NUL
        raise RoadError(
            f"{what} {quoted(str(path))} can't be read ({first_line(error)}): "
            "expected a text file in UTF-8"
        ) from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The path of the file.

    Returns:
        Its value.

    Raises:
        RoadError: where it is damaged, or larger or deeper than what roadint or PEFT write.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON + 1)
    except (OSError, ValueError) as error:
        raise RoadError(f"{path} can't be read ({first_line(error)})") from None
    return parse_json(content, str(path))


def parse_json(content: bytes, what: str) -> Any:
    """Read JSON, as `read_json`.

    Args:
        content: JSON in UTF-8.
        what: The name of the content in the message.

    Returns:
        The value.

    Raises:
        RoadError: as `read_json`.
    """
    if len(content) > MOST_JSON or content.count(b",") > _MOST_VALUES:
        raise RoadError(
            f"{what} is too large: "
            f"expected at most {MOST_JSON >> 20} MB of JSON and a million values"
        )
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_without_repetition)
        _check_values(value)
    except RecursionError:
        raise RoadError(f"{what} is nested too deep: expected at most {_DEEPEST} levels") from None
    except RoadError as error:
        raise RoadError(f"{what} {error}") from None
    except ValueError as error:  # no JSON, no UTF-8, an integer of thousands of digits
        raise RoadError(
            f"{what} is truncated or no JSON ({first_line(error)}): copy it again"
        ) from None
    return value


def read_header(file: BinaryIO, size: int, what: str) -> Header:
    """Read the names, dtypes and shapes in a safetensors file, without values.

    Args:
        file: The file, at its beginning.
        size: The size of the file, in bytes.
        what: The name of the file in the message.

    Returns:
        Dtypes and shapes by name.

    Raises:
        RoadError: where it is no such file, or not as long as it says.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MOST_JSON):
        raise RoadError(
            f"{what} is truncated or was altered: it is no safetensors file; copy it again"
        )
    described = parse_json(file.read(length), f"the header of {what}")
    if not isinstance(described, dict):
        raise RoadError(f"{what} is no safetensors file: its header is {quoted(described)}")
    described.pop("__metadata__", None)
    header = {name: _entry(name, about, what) for name, about in described.items()}
    bits = sum(math.prod(shape) * _BITS[dtype] for dtype, shape in header.values())
    expected = 8 + length + bits // 8
    if size != expected:
        raise RoadError(
            f"{what} is truncated or was altered: {size:,} bytes, expected {expected:,}; "
            "copy it again"
        )
    return header


def _entry(name: str, about: Any, what: str) -> tuple[str, tuple[int, ...]]:
    dtype = about.get("dtype") if isinstance(about, dict) else None
    shape = about.get("shape") if isinstance(about, dict) else None
    is_shape = (
        isinstance(shape, list)
        and len(shape) <= 8
        and all(type(size) is int and 0 <= size < 1 << 40 for size in shape)
    )
    if not is_shape or not isinstance(dtype, str) or dtype not in _BITS:
        raise RoadError(
            f"{what}: {quoted(name)} is {quoted(about)}: expected the dtype and shape of a tensor"
        )
    return dtype, tuple(shape)  # type: ignore[arg-type]


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise RoadError(f"says {quoted(name)} twice: expected each key once")
        values[name] = value
    return values


def _check_values(whole: Any) -> None:
    """Check that depth is bounded, and that all text is valid Unicode."""
    level = [whole]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                value.encode()  # half of a surrogate pair is a ValueError
            elif isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
        if not below:
            return
        level = below
    raise RecursionError
