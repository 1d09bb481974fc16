"""A row: an instruction, its output and maybe an input, all of them plain text."""

from collections.abc import Callable, Mapping
from typing import Any

from roadint.data.prompts import is_valid_unicode
from roadint.errors import RoadError, did_you_mean, listing, quoted

Row = dict[str, str]
"""{"instruction": …, "output": …}, and "input" where it has one, as Alpaca's rows have."""
RowForm = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Makes a Row's fields of a row with other fields."""
NEEDED, OPTIONAL = ("instruction", "output"), ("input",)


class UnusableRow(RoadError):
    """Says why a row is skipped, in a few words that are the same for all such rows."""


def checked_row(raw: Any, form: RowForm | None = None) -> Row:
    """Check a row, and leave out other fields than those of a Row.

    Args:
        raw: The row of the source.
        form: Makes the fields, where the source has others.

    Returns:
        The row; an input without an instruction becomes the instruction.

    Raises:
        UnusableRow: where its text is missing.
        RoadError: where it is no row; the message goes on after the row's name.
    """
    if not isinstance(raw, Mapping):
        raise RoadError(f"is {type(raw).__name__}: expected fields 'instruction' and 'output'")
    fields = form(raw) if form else raw
    row = {name: _text(name, field_of(fields, name)) for name in NEEDED}
    row |= {name: _text(name, fields.get(name)) for name in OPTIONAL}
    if not row["instruction"].strip():
        row["instruction"], row["input"] = row["input"], ""
    for name in NEEDED:
        if not row[name].strip():
            raise UnusableRow(f"an empty or non-text {name!r}")
    return {name: text for name, text in row.items() if name in NEEDED or text.strip()}


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field.

    Raises:
        RoadError: where the row has no such field; the message goes on after the row's name.
    """
    if name not in row:
        raise RoadError(f"has no field {name!r}: it has {listing(row)}{_misspelt(name, row)}")
    return row[name]


def _misspelt(name: str, row: Mapping[str, Any]) -> str:
    near = did_you_mean(name, map(str, row))
    return f"{near} Then rename it to {name!r}" if near else ""


def _text(name: str, value: Any) -> str:
    # Tables have None or NaN in empty cells.
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str):
        raise RoadError(f"has an empty or non-text {name!r}: {quoted(value)}; expected text")
    if not is_valid_unicode(value):
        raise RoadError(
            f"has a {name!r} with half a letter in it, which no tokenizer reads: {quoted(value)}"
        )
    return value
