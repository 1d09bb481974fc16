"""Figures; each function returns a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from roadint.inspection import block_values
from roadint.intervention import RoadIntervention

_AXES = {
    "prompt": "tokens of the prompt",
    "completion": "tokens of the completion",
    "rows": "rows of a step",
    "compositions": "different compositions in a step",
}
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def block_figure(interventions: Sequence[RoadIntervention]) -> Figure:
    """For each site a row: the angle of every block (degrees), its scale, and both as points of the plane, coloured by subspace."""
    figure = Figure(figsize=(12, 3.2 * len(interventions)), layout="constrained")
    for row, intervention in enumerate(interventions):
        values = block_values(intervention)
        angle_axes = figure.add_subplot(len(interventions), 3, 3 * row + 1)
        scale_axes = figure.add_subplot(len(interventions), 3, 3 * row + 2)
        plane: Any = figure.add_subplot(len(interventions), 3, 3 * row + 3, projection="polar")
        for (name, subspace), colour in zip(values["subspaces"].items(), _COLOURS * 8, strict=False):
            entries = len(subspace["angles"][0])
            blocks = [block for block in subspace["blocks"] for _ in range(entries)]
            angles = [angle for block in subspace["angles"] for angle in block]
            scales = [scale for block in subspace["scales"] for scale in block]
            style: dict[str, Any] = {"color": colour, "s": 7, "alpha": 0.75, "linewidths": 0}
            angle_axes.scatter(blocks, [angle * 57.29578 for angle in angles], label=name, **style)
            scale_axes.scatter(blocks, scales, **style)
            plane.scatter(angles, scales, **style)
        where = f"layer {values['layer']}, {values['variant']}, basis {values['basis']}"
        angle_axes.set(xlabel="block", ylabel="angle θ (degrees)", title=f"angle of each block: {where}")
        angle_axes.axhline(0, color="grey", linewidth=0.6)
        angle_axes.legend(markerscale=3, frameon=False, loc="best")
        scale_axes.set(xlabel="block", ylabel="scale α", title="scale of each block (1 = unchanged)")
        scale_axes.title.set_fontsize(10)
        angle_axes.title.set_fontsize(10)
        scale_axes.axhline(1, color="grey", linewidth=0.6)
        plane.set_title("both (1 at 0° = unchanged)", fontsize=10)
        plane.tick_params(labelsize=8)
        plane.set_rlabel_position(180)
        plane.set_yticks([0.5, 1.0, 1.5, 2.0])
    return figure


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
            panels[0].text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=colour)
    panels[0].set_xticks(range(len(sets)), sets)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_title("nats better than the base model" if "none" in names else f"nats better than {names[0]}", fontsize=9)
    figure.colorbar(picture, ax=panels[0], label="nats a token")
    shown = [each for each in ("success", "on_topic", "degenerate") if report["shares"][names[0]][each] is not None]
    height = 0.8 / len(shown)
    for place, (each, colour) in enumerate(zip(shown, _COLOURS, strict=False)):
        values = [report["shares"][name][each] for name in names]
        bars = [[abs(bound - value) for bound in _range(report, name, each)] for name, value in zip(names, values, strict=True)]
        rows = [row + (place - (len(shown) - 1) / 2) * height for row in range(len(names))]
        label = each.replace("_", " ")
        panels[1].barh(rows, values, height=height, xerr=list(zip(*bars, strict=True)), color=colour, ecolor="grey", label=label)
    panels[1].set(yticks=[], xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel="share of the answers")
    panels[1].legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(shown))
    return figure


def _range(report: Mapping[str, Any], composition: str, what: str) -> tuple[float, float]:
    """From where to where a share may well lie."""
    if "spread" in report:
        value, spread = report["shares"][composition][what], report["spread"]["shares"][composition][what]
        return value - spread, value + spread
    low, high = report["intervals"]["shares"][composition][what]
    return low, high


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
        for system, colour in zip(systems, _COLOURS, strict=False):
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
            _COLOURS[systems.index(name)] if (name := each["system"].split(",")[0]) in systems else _COLOURS[0] for each in own
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
    colours = dict(zip(dict.fromkeys(case["system"] for case in cases), _COLOURS, strict=False))
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
