"""What it does: gains, answers, interference, sweeps."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.plots.style import COLOURS, Figure


def composition_figure(report: Mapping[str, Any]) -> Figure:
    """A `roadint eval` report: nats gained over the base model, composition by data set, and shares of answers with their range.

    The range is the 95 % bootstrap interval of one checkpoint, or over several the sample standard deviation to either side.
    """
    names, sets = list(report["nll"]), list(next(iter(report["nll"].values())))
    base = report["nll"].get("none") or report["nll"][names[0]]
    figure = Figure(figsize=(5.5 + 1.1 * len(sets), 1.6 + 0.55 * len(names)), layout="constrained")
    panels: Any = figure.subplots(1, 2, width_ratios=[len(sets) + 1, 6])
    gains = [[base[each] - report["nll"][name][each] for each in sets] for name in names]
    bound = max(max(abs(value) for row in gains for value in row), 1e-3)
    picture = panels[0].imshow(gains, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    for row, values in enumerate(gains):
        for column, value in enumerate(values):
            colour = "white" if abs(value) > 0.6 * bound else "black"
            panels[0].text(
                column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=colour
            )
    panels[0].set_xticks(range(len(sets)), sets)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_title(
        "nats better than the base model" if "none" in names else f"nats better than {names[0]}",
        fontsize=9,
    )
    figure.colorbar(picture, ax=panels[0], label="nats a token")
    shown = [
        each
        for each in ("success", "on_topic", "degenerate")
        if report["shares"][names[0]][each] is not None
    ]
    height = 0.8 / len(shown)
    for place, (each, colour) in enumerate(zip(shown, COLOURS, strict=False)):
        values = [report["shares"][name][each] for name in names]
        bars = [
            [abs(bound - value) for bound in _range(report, name, each)]
            for name, value in zip(names, values, strict=True)
        ]
        rows = [row + (place - (len(shown) - 1) / 2) * height for row in range(len(names))]
        label = each.replace("_", " ")
        panels[1].barh(
            rows,
            values,
            height=height,
            xerr=list(zip(*bars, strict=True)),
            color=colour,
            ecolor="grey",
            label=label,
        )
    panels[1].set(
        yticks=[], xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel="share of the answers"
    )
    panels[1].legend(
        fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(shown)
    )
    return figure


def _range(report: Mapping[str, Any], composition: str, what: str) -> tuple[float, float]:
    """From where to where a share may well lie."""
    if "spread" in report:
        value, spread = (
            report["shares"][composition][what],
            report["spread"]["shares"][composition][what],
        )
        return value - spread, value + spread
    low, high = report["intervals"]["shares"][composition][what]
    return low, high


def interference_figure(report: Mapping[str, Any]) -> Figure:
    """A `roadint eval` report: how much worse a subspace's own data set becomes, in nats a token, in each composition with it."""
    found = report["interference"]
    names = list(dict.fromkeys(name for own in found.values() for name in own))
    grid = [[own.get(name, float("nan")) for name in names] for own in found.values()]
    return heat_figure(
        grid,
        list(found),
        names,
        rows_are="data set",
        columns_are="composition",
        values_are="nats a token worse than alone",
    )


def sweep_figure(
    rows: Sequence[Mapping[str, Any]], x: str, y: str, composition: str, value: str = "success"
) -> Figure:
    """A sweep as a heat map: two settings, and a share of the answers ("success", "on_topic", …) or the nats of a data set.

    rows: of `roadint.sweep`; runs that failed are left white.
    """
    xs, ys = (sorted({str(row["settings"][name]) for row in rows}, key=_ordered) for name in (x, y))
    cells = {
        (str(row["settings"][y]), str(row["settings"][x])): _value(row, composition, value)
        for row in rows
        if "error" not in row
    }
    grid = [[cells.get((b, a), float("nan")) for a in xs] for b in ys]
    unit = (
        value.replace("_", " ")
        if value in ("success", "on_topic", "degenerate")
        else f"{value}, nats a token"
    )
    return heat_figure(grid, ys, xs, rows_are=y, columns_are=x, values_are=f"{composition}: {unit}")


def heat_figure(
    grid: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    rows_are: str,
    columns_are: str,
    values_are: str,
) -> Figure:
    """Numbers as a labelled heat map; what is not a number stays white."""
    figure = Figure(figsize=(2.6 + 0.8 * len(columns), 1.6 + 0.5 * len(rows)), layout="constrained")
    axes: Any = figure.subplots()
    picture = axes.imshow(grid, cmap="viridis", aspect="auto")
    known = [each for row in grid for each in row if each == each]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    for place, row in enumerate(grid):
        for column, each in enumerate(row):
            if each == each:
                colour = "white" if each < middle else "black"
                axes.text(
                    column, place, f"{each:.2f}", ha="center", va="center", color=colour, fontsize=8
                )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=columns_are, ylabel=rows_are)
    figure.colorbar(picture, ax=axes, label=values_are)
    return figure


def _value(row: Mapping[str, Any], composition: str, value: str) -> float:
    shares = row.get("shares", {}).get(composition, {})
    found = shares[value] if value in shares else row["nll"][composition][value]
    return float("nan") if found is None else float(found)


def _ordered(text: str) -> tuple[float, str]:
    try:
        return float(text.strip("[]").split(",")[0]), text
    except ValueError:
        return float("inf"), text
