"""YAML of plain values: without aliases, without repeated names, and with 1e-2 as a number."""

import re
from pathlib import Path
from typing import Any

import yaml

from roadint.errors import RoadError, first_line, quoted
from roadint.files.readers import read_text

_MOST = 1 << 18  # bytes: what is longer was not written by hand


def read_yaml(path: Path, what: str) -> Any:
    """Read the content of a YAML file.

    Args:
        path: The file.
        what: The name of the file in messages, such as "recipe".

    Raises:
        RoadError: where the file can't be read or is too long, or `parse_yaml` refuses its text.
    """
    return parse_yaml(read_text(path, what, _MOST), f"{what} {quoted(str(path))}")


def parse_yaml(text: str, what: str) -> Any:
    """Read YAML of plain values, lists and mappings by text.

    Args:
        text: The YAML.
        what: The name of the text in messages.

    Raises:
        RoadError: where the text is too long or no YAML, holds an alias or a tag that is not plain,
            or has a mapping with a name that is no text or is there twice.

    Examples:
        >>> parse_yaml("{lr: 1e-2, layers: [6, 9]}", "recipe")
        {'lr': 0.01, 'layers': [6, 9]}
    """
    if len(text) > _MOST:
        raise RoadError(f"{what} has over {_MOST:,} characters: expected fewer")
    try:
        return yaml.load(text, _PlainLoader)
    except Exception as error:  # PyYAML's constructors raise of all kinds for a value and its tag
        raise RoadError(f"{what} is no YAML ({_reason(error)})") from None


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, by which a few lines could expand to gigabytes."""

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


# YAML 1.1, which PyYAML reads, wants a point in a number: without this 1e-2 is a text.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _reason(error: Exception) -> str:
    """What is wrong and where; PyYAML's own message begins with what it was doing."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return "nested too deep" if isinstance(error, RecursionError) else first_line(error)
    return f"line {mark.line + 1}: {first_line(Exception(problem))}"
