"""The figures of a sweep: a heat map of two settings, and one change after the other."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from roadint.plots.heat import heat_figure
from roadint.plots.style import COLOURS, Figure, add_legend

_Settings = Mapping[str, Any]
_SHARES = ("success", "on_topic", "degenerate")
_SEEDS = ("seed", "optimisation.seed")
_APART = 0.12  # compositions of a line, in lines


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
    told = f"{composition}: {_unit(value)}"
    return heat_figure(grid, lines, columns, rows_are=y, columns_are=x, values_are=told)


def changes_figure(rows: Sequence[Mapping[str, Any]], value: str = "success") -> Figure:
    """A sweep as a ladder: a line for all seeds of the same settings, in the order of the plan.

    A line is named by what changes from the line above. Error bars are the standard deviation over
    seeds.

    Args:
        rows: The table that `roadint.sweep.run.sweep` returns; failed runs, and runs of tasks, have
            no point.
        value: A share of the answers ("success", "on_topic", …), or a data set for its nats.
    """
    lines: list[tuple[_Settings, list[Mapping[str, Any]]]] = []
    for row in rows:
        settings = {name: each for name, each in row["settings"].items() if name not in _SEEDS}
        own = next((own for each, own in lines if each == settings), None)
        if own is None:
            lines.append((settings, own := []))
        own.append(row)
    compositions = list(dict.fromkeys(name for row in rows for name in row.get("nll", ())))
    figure = Figure(figsize=(8.5, 1.2 + 0.42 * len(lines)), layout="constrained")
    panel = figure.add_subplot()
    for index, composition in enumerate(compositions):
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "label": composition}
        beside = _APART * (index - (len(compositions) - 1) / 2)
        for place, (_, own) in enumerate(lines):
            told = [_value_of(row, composition, value) for row in own if "nll" in row]
            values = [each for each in told if each == each]  # shares may be unknown
            if not values:
                continue
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            mean = statistics.mean(values)
            panel.errorbar(mean, place + beside, xerr=spread, fmt="o", markersize=4, **style)
    above: list[_Settings] = [{}, *(settings for settings, _ in lines)]
    names = [_change(before, settings) for before, (settings, _) in zip(above, lines, strict=False)]
    panel.set_yticks(range(len(lines)), names, fontsize=8)
    panel.invert_yaxis()
    panel.grid(axis="x", linewidth=0.3)
    panel.set_xlabel(_unit(value))
    add_legend(figure, [panel])
    return figure


def _change(before: _Settings, after: _Settings) -> str:
    """What changes from one line to the next."""
    changed = [
        f"{name}={_text(each)}"
        for name, each in after.items()
        if name not in before or before[name] != each
    ]
    dropped = [f"{name} as at first" for name in before if name not in after]
    return ", ".join([*changed, *dropped]) or "at first"


def _text(value: Any) -> str:
    """A setting as in YAML, nearly."""
    return str(value).replace("'", "")


def _unit(value: str) -> str:
    if value in _SHARES:
        return value.replace("_", " ")
    return f"{value}, nats a token"


def _value_of(row: Mapping[str, Any], composition: str, value: str) -> float:
    """NaN where it is unknown, and where the row has no such composition."""
    if composition not in row["nll"]:
        return float("nan")
    shares = row.get("shares", {}).get(composition, {})
    number = shares[value] if value in shares else row["nll"][composition][value]
    return float("nan") if number is None else float(number)


def _number_first(text: str) -> tuple[float, str]:
    """The sort key of a setting: by its first number; settings without one come last."""
    try:
        return float(text.strip("[]").split(",")[0]), text
    except ValueError:
        return float("inf"), text
