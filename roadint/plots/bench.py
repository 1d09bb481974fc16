"""What it costs: `roadint bench` reports."""

from collections.abc import Mapping
from typing import Any

from roadint.plots.style import COLOURS, Figure

_AXES = {
    "prompt": "tokens of the prompt",
    "completion": "tokens of the completion",
    "rows": "rows of a step",
    "compositions": "different compositions in a step",
}


def linear_figure(report: Mapping[str, Any]) -> Figure:
    """A `roadint bench linear` report, a row of panels a dtype: one layer's time over its own by adapters, and a model's decode."""
    timed = [
        each
        for each in report["cases"]
        if "over_base" in each and each["system"].split(",")[0] != "base"
    ]
    dtypes = list(dict.fromkeys(each["dtype"] for each in timed)) or [""]
    tokens = list(dict.fromkeys(each["tokens"] for each in timed if each["name"] == "layer"))
    systems = list(dict.fromkeys(each["system"].split(",")[0] for each in timed))
    colours = dict(zip(systems, COLOURS, strict=False))
    figure = Figure(figsize=(3.6 * (len(tokens) + 1), 3.2 * len(dtypes)), layout="constrained")
    panels: Any = figure.subplots(len(dtypes), len(tokens) + 1, squeeze=False)
    for dtype, row in zip(dtypes, panels, strict=True):
        own = [each for each in timed if each["dtype"] == dtype]
        for panel, count in zip(row, tokens, strict=False):
            _layer_panel(
                panel,
                [each for each in own if each["name"] == "layer" and each["tokens"] == count],
                colours,
            )
            panel.set_title(
                f"one layer, {dtype}, {count} token{'s' if count > 1 else ''} a row", fontsize=9
            )
        decodes = [each for each in own if each["name"] == "decode"]
        row[-1].barh(
            [f"{each['system']} in {each['rows']} rows" for each in decodes],
            [each["over_base"] for each in decodes],
            color=[colours[each["system"].split(",")[0]] for each in decodes],
        )
        row[-1].invert_yaxis()
        row[-1].tick_params(axis="y", labelsize=7)
        row[-1].axvline(1, color="grey", linewidth=0.6)
        row[-1].set_title(f"a decoding step, {dtype}", fontsize=9)
        row[-1].set_xlabel("time over the model's own", fontsize=8)
    if tokens:
        panels[0, 0].legend(fontsize=7, frameon=False)
    return figure


def _layer_panel(panel: Any, cases: list[dict[str, Any]], colours: Mapping[str, str]) -> None:
    """A line for each system and width, the wider the paler."""
    for place, width in enumerate(sorted({each["width"] for each in cases})):
        for system, colour in colours.items():
            points = sorted(
                (each["adapters"], each["over_base"])
                for each in cases
                if (each["width"], each["system"]) == (width, system)
            )
            if points:
                label = None if place else system
                panel.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    alpha=1 - 0.25 * place,
                    marker="o",
                    markersize=3,
                    label=label,
                )
    panel.set(xscale="log", yscale="log")
    panel.set_xlabel("adapters in 64 rows", fontsize=8)
    panel.set_ylabel("time over the layer's own", fontsize=8)
    panel.axhline(1, color="grey", linewidth=0.6)
    counts, top = (
        sorted({each["adapters"] for each in cases}),
        max((each["over_base"] for each in cases), default=1),
    )
    panel.set_xticks(counts, map(str, counts))
    marks = [mark for mark in (1, 1.2, 1.5, 2, 3, 5, 10, 20, 50) if mark <= 1.1 * top]
    panel.set_yticks(marks, map(str, marks))
    panel.minorticks_off()


def bench_figure(report: Mapping[str, Any]) -> Figure:
    """A `roadint bench` report: the median time of each system, minimum to maximum, and step times along each measured axis."""
    cases = report["cases"]
    axes_of = {
        case["name"].removeprefix("step by "): None
        for case in cases
        if case["name"].startswith("step by ")
    }
    colours = dict(zip(dict.fromkeys(case["system"] for case in cases), COLOURS, strict=False))
    figure = Figure(figsize=(4 + 3.2 * len(axes_of), 3.4), layout="constrained")
    panels: Any = figure.subplots(
        1, 1 + len(axes_of), squeeze=False, width_ratios=[1.3] + [1] * len(axes_of)
    )[0]
    bars = [case for case in cases if not case["name"].startswith(("step by ", "whole job"))]
    for place, case in enumerate(bars):
        label = case["system"] if case["name"] == "step" else f"{case['system']}, {case['name']}"
        low, high = case["median_s"] - case["min_s"], case["max_s"] - case["median_s"]
        panels[0].barh(
            place,
            case["median_s"],
            height=0.5,
            xerr=[[low], [high]],
            color=colours[case["system"]],
            ecolor="grey",
            capsize=3,
        )
        panels[0].text(0, place - 0.42, label, va="bottom", fontsize=8)
    panels[0].set(
        yticks=[],
        xlabel="seconds (median, min to max)",
        title="a training step" if axes_of else "",
        ylim=(len(bars) - 0.4, -0.8),
    )
    for panel, axis in zip(panels[1:], axes_of, strict=True):
        for system, colour in colours.items():
            points = sorted(
                (c[axis], c["median_s"])
                for c in cases
                if c["name"] == f"step by {axis}" and c["system"] == system
            )
            panel.plot(
                *zip(*points, strict=True), color=colour, marker="o", markersize=3, label=system
            )
        panel.set(xlabel=_AXES[axis], ylabel="seconds a step")
        panel.set_ylim(bottom=0)
    if axes_of:
        panels[1].legend(fontsize=7, frameon=False)
    return figure
