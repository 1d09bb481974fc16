"""The figure of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.plots.heat import heat_figure
from roadint.plots.style import Figure


def sweep_figure(
    rows: Sequence[Mapping[str, Any]], x: str, y: str, composition: str, value: str = "success"
) -> Figure:
    """A sweep as a heat map of two settings.

    Args:
        rows: The table that `roadint.sweep.run.sweep` returns; failed runs stay white.
        x: The setting of the columns.
        y: The setting of the rows.
        composition: The composition whose numbers are shown.
        value: A share of the answers ("success", "on_topic", …), or a data set for its nats.
    """
    columns, lines = (
        sorted({str(row["settings"][name]) for row in rows}, key=_number_first) for name in (x, y)
    )
    values = {
        (str(row["settings"][y]), str(row["settings"][x])): _value_of(row, composition, value)
        for row in rows
        if "error" not in row
    }
    grid = [[values.get((line, column), float("nan")) for column in columns] for line in lines]
    is_share = value in ("success", "on_topic", "degenerate")
    unit = value.replace("_", " ") if is_share else f"{value}, nats a token"
    return heat_figure(
        grid, lines, columns, rows_are=y, columns_are=x, values_are=f"{composition}: {unit}"
    )


def _value_of(row: Mapping[str, Any], composition: str, value: str) -> float:
    shares = row.get("shares", {}).get(composition, {})
    number = shares[value] if value in shares else row["nll"][composition][value]
    return float("nan") if number is None else float(number)


def _number_first(text: str) -> tuple[float, str]:
    """The sort key of a setting: by its first number; settings without one come last."""
    try:
        return float(text.strip("[]").split(",")[0]), text
    except ValueError:
        return float("inf"), text
