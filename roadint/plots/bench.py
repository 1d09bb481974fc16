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
    """A `roadint bench linear` report: one layer's time over the base's by adapters in the batch, and the whole model's decode."""
    layers = [each for each in report["cases"] if each["name"] == "layer" and "over_base" in each]
    decodes = [each for each in report["cases"] if each["name"] == "decode" and "over_base" in each and each["system"] != "base"]
    shapes = list(dict.fromkeys((each["dtype"], each["tokens"]) for each in layers))
    systems = [name for name in dict.fromkeys(each["system"] for each in layers) if name != "base"]
    groups = list(dict.fromkeys((each["dtype"], each["rows"]) for each in decodes))
    figure = Figure(figsize=(3.4 * max(1, len(shapes) + len(groups)), 3.6), layout="constrained")
    panels: Any = figure.subplots(1, max(1, len(shapes) + len(groups)), squeeze=False)[0]
    for panel, (dtype, tokens) in zip(panels, shapes, strict=False):
        for system, colour in zip(systems, COLOURS, strict=False):
            own = [each for each in layers if (each["dtype"], each["tokens"], each["system"]) == (dtype, tokens, system)]
            for place, width in enumerate(sorted({each["width"] for each in own})):
                points = sorted((each["adapters"], each["over_base"]) for each in own if each["width"] == width)
                label = system if not place else None
                panel.plot(*zip(*points, strict=True), color=colour, alpha=0.9 - 0.2 * place, marker="o", markersize=3, label=label)
        panel.set(xscale="log", yscale="log", xlabel="adapters in a batch of 64 rows", ylabel="time over the layer's own")
        panel.set_title(f"one layer, {dtype}, {tokens} token{'s' if tokens > 1 else ''} a row", fontsize=9)
        panel.axhline(1, color="grey", linewidth=0.6)
    if shapes:
        panels[0].legend(fontsize=7, frameon=False)
    for panel, (dtype, rows) in zip(panels[len(shapes) :], groups, strict=True):
        own = [each for each in decodes if (each["dtype"], each["rows"]) == (dtype, rows)]
        colours = [
            COLOURS[systems.index(name)] if (name := each["system"].split(",")[0]) in systems else COLOURS[0] for each in own
        ]
        panel.barh([each["system"] for each in own], [each["over_base"] for each in own], color=colours)
        panel.invert_yaxis()
        panel.tick_params(axis="y", labelsize=7)
        panel.axvline(1, color="grey", linewidth=0.6)
        panel.set(xlabel="time over the model's own")
        panel.set_title(f"a decoding step, {dtype}, {rows} rows", fontsize=9)
    return figure


def bench_figure(report: Mapping[str, Any]) -> Figure:
    """A `roadint bench` report: the median time of each system, minimum to maximum, and step times along each measured axis."""
    cases = report["cases"]
    axes_of = {case["name"].removeprefix("step by "): None for case in cases if case["name"].startswith("step by ")}
    colours = dict(zip(dict.fromkeys(case["system"] for case in cases), COLOURS, strict=False))
    figure = Figure(figsize=(4 + 3.2 * len(axes_of), 3.4), layout="constrained")
    panels: Any = figure.subplots(1, 1 + len(axes_of), squeeze=False, width_ratios=[1.3] + [1] * len(axes_of))[0]
    bars = [case for case in cases if not case["name"].startswith(("step by ", "whole job"))]
    for place, case in enumerate(bars):
        label = case["system"] if case["name"] == "step" else f"{case['system']}, {case['name']}"
        low, high = case["median_s"] - case["min_s"], case["max_s"] - case["median_s"]
        panels[0].barh(
            place, case["median_s"], height=0.5, xerr=[[low], [high]], color=colours[case["system"]], ecolor="grey", capsize=3
        )
        panels[0].text(0, place - 0.42, label, va="bottom", fontsize=8)
    panels[0].set(
        yticks=[], xlabel="seconds (median, min to max)", title="a training step" if axes_of else "", ylim=(len(bars) - 0.4, -0.8)
    )
    for panel, axis in zip(panels[1:], axes_of, strict=True):
        for system, colour in colours.items():
            points = sorted((c[axis], c["median_s"]) for c in cases if c["name"] == f"step by {axis}" and c["system"] == system)
            panel.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=system)
        panel.set(xlabel=_AXES[axis], ylabel="seconds a step")
        panel.set_ylim(bottom=0)
    if axes_of:
        panels[1].legend(fontsize=7, frameon=False)
    return figure
