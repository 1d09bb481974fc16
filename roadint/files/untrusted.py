"""JSON and safetensors that anybody may have written: bounded and checked before they take memory. Raises RoadError alone."""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

from roadint.errors import RoadError, first_line, quoted

MOST_JSON = 16 << 20  # bytes: hundreds of adapters of a large model
_MOST_VALUES = 1_000_000
_DEEPEST = 64  # lists and mappings in each other

_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
}
_BITS |= {"I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64}

Header = dict[
    str, tuple[str, tuple[int, ...]]
]  # name → dtype as safetensors writes it ("F32"), shape


def read_json(path: Path) -> Any:
    """What a JSON file says. Raises RoadError where it is damaged, or larger or deeper than anything that roadint or PEFT write."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON + 1)
    except (OSError, ValueError) as error:
        raise RoadError(f"{path} can't be read ({first_line(error)})") from None
    return parse_json(content, str(path))


def parse_json(content: bytes, what: str) -> Any:
    """As `read_json`, from bytes; what: their name in messages."""
    if len(content) > MOST_JSON or content.count(b",") > _MOST_VALUES:
        raise RoadError(
            f"{what} is too large: expected at most {MOST_JSON >> 20} MB of JSON and a million values"
        )
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
        _check_values(found)
    except RecursionError:
        raise RoadError(f"{what} is nested too deep: expected at most {_DEEPEST} levels") from None
    except RoadError as error:
        raise RoadError(f"{what} {error}") from None
    except ValueError as error:  # no JSON, no UTF-8, an integer of thousands of digits
        raise RoadError(
            f"{what} is truncated or no JSON ({first_line(error)}): copy it again"
        ) from None
    return found


def read_header(file: BinaryIO, size: int, what: str) -> Header:
    """The names, dtypes and shapes of a safetensors file of `size` bytes, without its values. Raises RoadError where it is none."""
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
    expected = (
        8 + length + sum(math.prod(shape) * _BITS[dtype] // 8 for dtype, shape in header.values())
    )
    if size != expected:
        raise RoadError(
            f"{what} is truncated or was altered: {size:,} bytes, expected {expected:,}; copy it again"
        )
    return header


def _entry(name: str, about: Any, what: str) -> tuple[str, tuple[int, ...]]:
    dtype, shape = (
        (about.get("dtype"), about.get("shape")) if isinstance(about, dict) else (None, None)
    )
    whole = (
        isinstance(shape, list)
        and len(shape) <= 8
        and all(type(each) is int and 0 <= each < 1 << 40 for each in shape)
    )
    if not whole or not isinstance(dtype, str) or dtype not in _BITS:
        raise RoadError(
            f"{what}: {quoted(name)} is {quoted(about)}: expected the dtype and shape of a tensor"
        )
    return dtype, tuple(shape)  # type: ignore[arg-type]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise RoadError(f"says {quoted(twice)} twice: expected each key once")
    return found


def _check_values(whole: Any) -> None:
    """Bounded depth, and text that can be written again."""
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
