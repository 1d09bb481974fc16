"""The figure of `roadint bench train` and `generate`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from roadint.plots.style import COLOURS, Figure, draw_line

_STEP_BY = "step by "  # begins the names of cases that belong to a curve
_AXES = {
    "prompt": "tokens of the prompt",
    "completion": "tokens of the completion",
    "rows": "rows of a step",
    "compositions": "different compositions in a step",
}


def bench_figure(report: Mapping[str, Any]) -> Figure:
    """The median time of every system, minimum to maximum, and step times along measured axes.

    Args:
        report: The report of `roadint bench`, but for `roadint bench linear`, which has a figure of
            its own.
    """
    cases = report["cases"]
    curves = [case for case in cases if case["name"].startswith(_STEP_BY)]
    axes = list(dict.fromkeys(case["name"].removeprefix(_STEP_BY) for case in curves))
    colours = dict(zip(dict.fromkeys(case["system"] for case in cases), COLOURS, strict=False))
    figure = Figure(figsize=(4 + 3.2 * len(axes), 3.4), layout="constrained")
    widths = [1.3] + [1.0] * len(axes)
    bars, *panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    barred = [case for case in cases if not case["name"].startswith((_STEP_BY, "whole job"))]
    _draw_bars(bars, barred, colours)
    bars.set_title("a training step" if axes else "")
    for panel, axis in zip(panels, axes, strict=True):
        _draw_curves(panel, curves, axis, colours)
    if panels:
        panels[0].legend(fontsize=7, frameon=False)
    return figure


def _draw_bars(panel: Axes, cases: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    for index, case in enumerate(cases):
        median = case["median_s"]
        panel.barh(
            index,
            median,
            height=0.5,
            xerr=[[median - case["min_s"]], [case["max_s"] - median]],
            color=colours[case["system"]],
            ecolor="grey",
            capsize=3,
        )
        label = case["system"] if case["name"] == "step" else f"{case['system']}, {case['name']}"
        panel.text(0, index - 0.42, label, va="bottom", fontsize=8)
    panel.set(yticks=[], xlabel="seconds (median, min to max)", ylim=(len(cases) - 0.4, -0.8))


def _draw_curves(
    panel: Axes, curves: Sequence[Mapping[str, Any]], axis: str, colours: Mapping[str, str]
) -> None:
    for system, colour in colours.items():
        points = sorted(
            (case[axis], case["median_s"])
            for case in curves
            if case["name"] == f"{_STEP_BY}{axis}" and case["system"] == system
        )
        draw_line(panel, points, color=colour, label=system)
    panel.set(xlabel=_AXES[axis], ylabel="seconds a step")
    panel.set_ylim(bottom=0)
