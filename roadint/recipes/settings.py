"""Settings as people write them, in YAML files and on the command line: read, cast to their type, checked against their range."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from roadint.errors import RoadError, first_line, listing, quoted
from roadint.files.readers import read_text

_MOST = 1 << 18  # bytes of YAML: more is no recipe
FLOAT32 = 3.4028234663852886e38  # the largest: what is beyond becomes infinite in the values that are trained


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file; `what` ("recipe") is how a message calls it. Raises RoadError."""
    return parse_yaml(read_text(path, what, _MOST), f"{what} {quoted(str(path))}")


def parse_yaml(text: str, what: str) -> Any:
    """YAML of plain values, lists and mappings by text. Raises RoadError for what is none, aliases, and names given twice."""
    if len(text) > _MOST:
        raise RoadError(f"{what} has over {_MOST:,} characters: expected fewer")
    try:
        return yaml.load(text, _Plain)
    except (
        Exception
    ) as error:  # PyYAML's own constructors raise of all kinds where a value does not suit its tag
        raise RoadError(f"{what} is no YAML ({_reason(error)})") from None


class _Plain(yaml.SafeLoader):
    """YAML without aliases, which a few lines of blow up into gigabytes, and without names that are numbers or are there twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias: expected the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.YAMLError(f"the name {quoted(name)} is no text: expected it in quotes")
            if name in names:
                raise yaml.YAMLError(f"{quoted(name)} is there twice: expected it once")
            names.add(name)
        return super().construct_mapping(node, deep)


def cast(what: str, value: Any, hint: Any) -> Any:
    """`value` as the type that a setting has; texts are read as YAML where the type is none, since YAML takes 1e-2 for a text.

    what: how messages call it, "recipe setting lr". Raises RoadError where the value does not fit.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, str) and _reads_yaml(value, options):
        value = parse_yaml(value, f"{what}={quoted(value)}")
    if value is None and type(None) in options:
        return None
    for option in options:
        if get_origin(option) is list and (isinstance(value, (list, tuple)) or str not in options):
            listed = value if isinstance(value, (list, tuple)) else [value]
            return [cast(what, each, get_args(option)[0]) for each in listed]
        if get_origin(option) is dict:
            return _cast_mapping(what, value, get_args(option)[1])
    if float in options and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise RoadError(f"{what}={quoted(value)}: expected a number") from None
    if any(_is_one(value, option) for option in options):
        return value
    choices = [choice for option in options for choice in _choices(option)]
    raise RoadError(f"{what}={quoted(value)} does not fit: expected {listing(choices)}")


@dataclass(frozen=True)
class Range:
    """Which numbers a setting takes: from `low` to `high`, or above `low`."""

    low: float
    high: float = FLOAT32
    above: bool = False

    def check(self, what: str, value: Any) -> None:
        """Raises RoadError for what lies outside, or is no number; None passes, of a list or a mapping each value is checked."""
        if value is None:
            return
        if isinstance(value, Mapping):
            for name, each in value.items():
                self.check(f"{what}.{name}", each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                self.check(what, each)
        elif (
            not isinstance(value, (int, float))
            or not (self.low <= value <= self.high)
            or (self.above and value == self.low)
        ):
            raise RoadError(f"{what}={quoted(value)} must be {self}")

    def __str__(self) -> str:
        least = (
            "any finite number"
            if self.low < 0
            else f"above {self.low:g}"
            if self.above
            else f"at least {self.low:g}"
        )
        return least if self.high == FLOAT32 else f"{least} and at most {self.high:,.12g}"


def _reads_yaml(text: str, options: Sequence[Any]) -> bool:
    if str in options or list[str] in options:
        return list[str] in options and text.lstrip().startswith("[")
    return not all(get_origin(option) is Literal or option is type(None) for option in options)


def _cast_mapping(what: str, value: Any, hint: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RoadError(f"{what}={quoted(value)}: expected a mapping such as {{german: …}}")
    for name in value:
        if not isinstance(name, str):
            raise RoadError(f"{what} has the name {quoted(name)}: expected text")
    return {
        name: each if hint is Any else cast(f"{what}.{name}", each, hint)
        for name, each in value.items()
    }


def _is_one(value: Any, option: Any) -> bool:
    if get_origin(option) is Literal:
        return any(type(value) is type(each) and value == each for each in get_args(option))
    if isinstance(value, bool):
        return option in (bool, Any)
    return option is Any or (isinstance(option, type) and isinstance(value, option))


def _choices(option: Any) -> tuple[Any, ...]:
    return (
        get_args(option)
        if get_origin(option) is Literal
        else (getattr(option, "__name__", str(option)),)
    )


def _reason(error: Exception) -> str:
    """What is wrong and where, in one line; PyYAML's own message begins with what it was doing."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return "nested too deep" if isinstance(error, RecursionError) else first_line(error)
    return f"line {mark.line + 1}: {first_line(Exception(problem))}"
