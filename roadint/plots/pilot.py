"""The figure of `roadint bench pilot`: the paper's figures 2 and B.1, as measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from roadint.plots.style import COLOURS, Figure

_METHODS = {"full": "full finetuning", "lora": "LoRA r=8", "road_1": "RoAd1"}
_READS = {
    "angle": ("angle", COLOURS[0]),
    "magnitude": ("magnitude", COLOURS[1]),
    "magnitude, scaled": ("magnitude, scaled", "#F0B48A"),
    "both": ("both", COLOURS[2]),
    "random": ("both, random encoder", "#999999"),
}
_TASKS = {"rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA", "sst2": "SST-2"}
_METRICS = {"accuracy": "accuracy", "pearson": "Pearson", "matthews": "Matthews"}
_LEAST, _TICKS = 1e-5, (1e-4, 1e-2, 1.0)  # a change below the first is drawn there
_COLUMNS, _WIDE, _HIGH, _BARS = 6, 1.55, 1.75, 2.9


def pilot_figure(report: Mapping[str, Any]) -> Figure:
    """Both studies that a report has: 1 − ΔD over ΔM for every layer, then bars for every task.

    Axes of changes are logarithmic, as early layers change a thousand times less than the last;
    above the dashed line 1 − ΔD is above ΔM. Bars have the sample standard deviation over seeds.

    Args:
        report: The report of `roadint bench pilot`.
    """
    changes = [case for case in report["cases"] if case["study"] == 1]
    scores = [case for case in report["cases"] if case["study"] == 2]
    layers = sorted({case["layer"] for case in changes})
    lines = -(-len(layers) // _COLUMNS)
    heights = [_HIGH * lines + 0.7] * bool(changes) + [_BARS] * bool(scores)
    width = 1 + _WIDE * max(4, min(len(layers), _COLUMNS))
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if changes:
        _draw_changes(parts[0], changes, layers, lines)
    if scores:
        _draw_scores(parts[-1], scores)
    return figure


def _draw_changes(
    figure: SubFigure, cases: Sequence[Mapping[str, Any]], layers: Sequence[int], lines: int
) -> None:
    columns = min(len(layers), _COLUMNS)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    methods = list(dict.fromkeys(case["method"] for case in cases))
    for panel, layer in zip(panels, layers, strict=False):
        for method, colour in zip(methods, COLOURS, strict=False):
            chosen = [c["points"] for c in cases if (c["layer"], c["method"]) == (layer, method)]
            panel.scatter(
                [max(magnitude, _LEAST) for magnitude, _ in chosen[0]],
                [max(1 - direction, _LEAST) for _, direction in chosen[0]],
                s=4,
                alpha=0.5,
                linewidths=0,
                color=colour,
                label=_METHODS.get(method, method),
            )
        panel.plot(
            [0.5 * _LEAST, 4], [0.5 * _LEAST, 4], color="grey", linewidth=0.8, linestyle="--"
        )
        panel.set_title(f"layer {layer}", fontsize=8)
        panel.set(xscale="log", yscale="log", xlim=(0.5 * _LEAST, 4), ylim=(0.5 * _LEAST, 4))
        panel.set(xticks=_TICKS, yticks=_TICKS)
        panel.minorticks_off()
        panel.tick_params(labelsize=7)
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.supxlabel("ΔM, relative change of the size", fontsize=8)
    figure.supylabel("1 − ΔD, change of the direction", fontsize=8)
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=3,
        fontsize=8,
        frameon=False,
        markerscale=2,
    )


def _draw_scores(figure: SubFigure, cases: Sequence[Mapping[str, Any]]) -> None:
    panel = figure.subplots()
    tasks = list(dict.fromkeys(case["task"] for case in cases))
    width = 0.8 / len(_READS)
    for index, (reads, (label, colour)) in enumerate(_READS.items()):
        chosen = {case["task"]: case for case in cases if case["reads"] == reads}
        places = [at + (index - (len(_READS) - 1) / 2) * width for at in range(len(tasks))]
        values = [100 * chosen[task]["test"] for task in tasks]
        spreads = [100 * (chosen[task]["sd"] or 0) for task in tasks]
        panel.bar(
            places,
            values,
            width=0.92 * width,
            yerr=spreads,
            color=colour,
            error_kw={"elinewidth": 0.9, "capsize": 2},
            label=label,
        )
        _write_values(panel, places, values, spreads)
    names = [f"{_TASKS.get(task, task)} ({_METRICS[_metric(cases, task)]})" for task in tasks]
    panel.set_xticks(range(len(tasks)), names, fontsize=8)
    panel.axhline(0, color="black", linewidth=0.6)
    panel.tick_params(axis="y", labelsize=7)
    panel.set_ylabel("test rows, × 100", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=8, frameon=False)


def _write_values(
    panel: Axes, places: Sequence[float], values: Sequence[float], spreads: Sequence[float]
) -> None:
    for place, value, spread in zip(places, values, spreads, strict=True):
        at = max(value, 0) + spread
        panel.annotate(
            f"{value:.0f}", (place, at), (0, 2), textcoords="offset points", ha="center", fontsize=7
        )


def _metric(cases: Sequence[Mapping[str, Any]], task: str) -> str:
    return next(str(case["metric"]) for case in cases if case["task"] == task)
