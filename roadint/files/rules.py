"""Rules for values in untrusted JSON, which are checked before they are used.

A rule takes a value and its name in messages, and raises RoadError for a value that it does not
allow.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from roadint.errors import RoadError, did_you_mean, listing, quoted

Rule = Callable[[Any, str], None]
Shapes = dict[str, tuple[int, ...]]  # the tensors that a file needs, by name


def whole(low: int, high: int) -> Rule:
    """An integer from `low` to `high`."""

    def rule(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(where, value, f"an integer from {low} to {high}")

    return rule


def number(low: float, high: float) -> Rule:
    """A finite number from `low` to `high`, exact as a float."""

    def rule(value: Any, where: str) -> None:
        inside = type(value) in (int, float) and low <= value <= high
        if not inside or (type(value) is int and abs(value) > 1 << 53):
            raise _wrong(where, value, f"a number from {low:g} to {high:g}")

    return rule


def text(pattern: str = r"(?s:.)*", most: int = 4096, what: str = "text") -> Rule:
    """Text of bounded length.

    Args:
        pattern: A regular expression for the whole text, which takes linear time.
        most: The largest number of characters.
        what: The description of the text in the message.
    """
    compiled = re.compile(pattern)

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > most or not compiled.fullmatch(value):
            raise _wrong(where, value, f"{what} of at most {most} characters")

    return rule


def one_of(*options: Any) -> Rule:
    """One of these values, of the same type."""
    names = [str(option) for option in options]

    def rule(value: Any, where: str) -> None:
        if not any(type(value) is type(option) and value == option for option in options):
            hint = did_you_mean(value, names)
            raise _wrong(where, value, f"one of {listing(options)}{hint}")

    return rule


def either(*rules: Rule) -> Rule:
    """A value that one of the rules allows."""

    def rule(value: Any, where: str) -> None:
        reasons = []
        for option in rules:
            try:
                return option(value, where)
            except RoadError as error:
                reasons.append(error)
        raise reasons[-1]

    return rule


def listed(rule_of_items: Rule, most: int = 1_000_000) -> Rule:
    """A list of at most `most` items, every item by the rule."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise _wrong(where, value, f"a list of at most {most:,}")
        for index, item in enumerate(value):
            rule_of_items(item, f"{where}[{index}]")

    return rule


def mapped(rule_of_keys: Rule, rule_of_values: Rule) -> Rule:
    """A mapping with any keys, at least one."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, dict) or not value:
            raise _wrong(where, value, "a mapping that names something")
        for key, item in value.items():
            rule_of_keys(key, f"a name in {where}")
            rule_of_values(item, f"{where}[{quoted(key)}]")

    return rule


def fields(
    required: Mapping[str, Rule],
    optional: Mapping[str, Rule] | None = None,
    *,
    open_to_others: bool = False,
) -> Rule:
    """A mapping with these keys and, unless it is open to others, no more."""
    rules = {**required, **(optional or {})}

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(where, value, f"a mapping with {listing(required)}")
        for key in required:
            if key not in value:
                raise RoadError(f"{where} lacks {key!r}: expected {listing(required)}")
        for key, item in value.items():
            if key in rules:
                rules[key](item, f"{where}.{key}")
            elif not open_to_others:
                raise RoadError(
                    f"{where} has the unknown key {quoted(key)}: expected {listing(rules)}"
                    f"{did_you_mean(key, rules)}"
                )

    return rule


def anything(value: Any, where: str) -> None:
    """Allow any value."""


def _wrong(where: str, value: Any, expected: str) -> RoadError:
    return RoadError(f"{where} is {quoted(value)}: expected {expected}")
