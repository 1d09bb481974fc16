"""YAML as people write it."""

from typing import Any

import pytest

from roadint import RoadError
from roadint.files.yaml import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01),
        ("-1E+3", -1000.0),
        ("+5e0", 5.0),
        ("2.5e3", 2500.0),
        ("12", 12),
        (".5", 0.5),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e-2x", "1e-2x"),
        ("'1e-2'", "1e-2"),
        ("{a: [1e2, -3], b: last(5)}", {"a": [100.0, -3], "b": "last(5)"}),
    ],
)
def test_numbers_are_read_as_everybody_reads_them(text: str, value: Any) -> None:
    read = parse_yaml(text, "x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[&a 1, *a]", "x is no YAML .*an alias"),
        ("{a: 1, a: 2}", "'a' is there twice"),
        ("{1e3: 2}", "the name 1000.0 is no text"),
        ("!!python/name:os.system", "x is no YAML"),
        ("#" * 300_000, "x has over 262,144 characters"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        parse_yaml(text, "x")
