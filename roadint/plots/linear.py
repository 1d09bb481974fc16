"""The figure of `roadint bench linear`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from roadint.plots.style import COLOURS, Figure, draw_line

_MARKS = (1, 1.2, 1.5, 2, 3, 5, 10, 20, 50)


def linear_figure(report: Mapping[str, Any]) -> Figure:
    """A layer's time over its own by the number of adapters, and a model's decoding step.

    Args:
        report: The report of `roadint bench linear`. Every dtype becomes a row of panels: one for
            each number of tokens a row, and one for decoding.
    """
    timed = [case for case in report["cases"] if "over_base" in case and _system(case) != "base"]
    dtypes = list(dict.fromkeys(case["dtype"] for case in timed)) or [""]
    tokens = list(dict.fromkeys(case["tokens"] for case in timed if case["name"] == "layer"))
    systems = dict.fromkeys(map(_system, timed))
    colours = dict(zip(systems, COLOURS, strict=False))
    figure = Figure(figsize=(3.6 * (len(tokens) + 1), 3.2 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(tokens) + 1, squeeze=False)
    for dtype, row in zip(dtypes, panels, strict=True):
        cases = [case for case in timed if case["dtype"] == dtype]
        for panel, count in zip(row, tokens, strict=False):
            layers = [case for case in cases if case["name"] == "layer"]
            _draw_layer(panel, [case for case in layers if case["tokens"] == count], colours)
            unit = "token" if count == 1 else "tokens"
            panel.set_title(f"one layer, {dtype}, {count} {unit} a row", fontsize=9)
        _draw_decoding(row[-1], [case for case in cases if case["name"] == "decode"], colours)
        row[-1].set_title(f"a decoding step, {dtype}", fontsize=9)
    if tokens:
        panels[0, 0].legend(fontsize=7, frameon=False)
    return figure


def _system(case: Mapping[str, Any]) -> str:
    """The name of a system without its settings, which follow a comma."""
    return str(case["system"].split(",")[0])


def _draw_layer(
    panel: Axes, cases: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    """A line for every system and width, the wider the paler."""
    for index, width in enumerate(sorted({case["width"] for case in cases})):
        for system, colour in colours.items():
            points = sorted(
                (case["adapters"], case["over_base"])
                for case in cases
                if case["width"] == width and case["system"] == system
            )
            if points:
                label = None if index else system
                draw_line(panel, points, color=colour, alpha=1 - 0.25 * index, label=label)
    panel.set(xscale="log", yscale="log")
    panel.set_xlabel("adapters in 64 rows", fontsize=8)
    panel.set_ylabel("time over the layer's own", fontsize=8)
    panel.axhline(1, color="grey", linewidth=0.6)
    counts = sorted({case["adapters"] for case in cases})
    panel.set_xticks(counts, list(map(str, counts)))
    slowest = max((case["over_base"] for case in cases), default=1)
    marks = [mark for mark in _MARKS if mark <= 1.1 * slowest]
    panel.set_yticks(marks, list(map(str, marks)))
    panel.minorticks_off()


def _draw_decoding(
    panel: Axes, cases: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    """A bar for every system and number of rows."""
    modes = [case.get("mode", "eager") for case in cases]
    endings = ["" if mode == "eager" else f", {mode}" for mode in modes]
    panel.barh(
        [
            f"{case['system']} in {case['rows']} rows{ending}"
            for case, ending in zip(cases, endings, strict=True)
        ],
        [case["over_base"] for case in cases],
        color=[colours[_system(case)] for case in cases],
    )
    panel.invert_yaxis()
    panel.tick_params(axis="y", labelsize=7)
    panel.axvline(1, color="grey", linewidth=0.6)
    panel.set_xlabel("time over the model's own", fontsize=8)
