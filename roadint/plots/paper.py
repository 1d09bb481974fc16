"""The figures of `roadint bench paper`: the paper's figure 4 and table D.1, as measured."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from roadint.plots.style import COLOURS, Figure, add_legend, draw_line

_PANELS = {
    "ranks": "LoRA's rank, one request",
    "lengths": "generated tokens",
    "requests": "requests, each with an adapter of its own",
}
_MODES = {"eager": "-", "graph": "--"}
_RANK, _MERGED = re.compile(r" r=(\d+)"), " merged"
_WIDE, _HIGH = 4.4, 3.6


def throughput_figure(report: Mapping[str, Any]) -> Figure:
    """Generated tokens a second, as the paper's figure 4 has them.

    Systems have colours, and squares where they are merged; lines are drawn through for eager
    steps, and dashed for CUDA graphs. At the left LoRA goes by its rank, and what has no rank is a
    level line.

    Args:
        report: The report of `roadint bench paper`; each of the parts "ranks", "lengths" and
            "requests" that it has becomes a panel.
    """
    timed = [case for case in report["cases"] if "tokens_per_s" in case]
    parts = [part for part in _PANELS if any(case["name"] == part for case in timed)]
    names = sorted(dict.fromkeys(map(_family, timed)), key="base".__ne__)
    kinds = dict.fromkeys(name.removesuffix(_MERGED) for name in names)
    colours = dict(zip(kinds, ("#000000", *COLOURS), strict=False))
    modes = {case["mode"] for case in timed}
    columns = max(1, len(parts))
    figure = Figure(figsize=(_WIDE * columns + 2.2, _HIGH), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for panel, part in zip(panels, parts, strict=False):
        cases = [case for case in timed if case["name"] == part]
        for mode, line in _MODES.items():
            for name in names:
                chosen = [c for c in cases if c["mode"] == mode and _family(c) == name]
                points = _points(part, chosen, cases)
                if points:
                    draw_line(
                        panel,
                        points,
                        color=colours[name.removesuffix(_MERGED)],
                        linestyle=line,
                        label=f"{name}, {mode}" if len(modes) > 1 else name,
                        marker="s" if name.endswith(_MERGED) else "o",
                    )
        _finish(panel, part, cases)
    add_legend(figure, panels)
    return figure


def training_cost_figure(report: Mapping[str, Any]) -> Figure:
    """Time and memory of training adapters on all linear layers, as the paper's table D.1 has them.

    Args:
        report: The report of `roadint bench paper` with the part "training".
    """
    cases = [case for case in report["cases"] if case["name"] == "training"]
    figure = Figure(figsize=(9, 0.8 + 0.34 * max(1, len(cases))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [case["system"] for case in cases]
    colours = [
        COLOURS[0 if name.startswith("roadint") else 2 if "OFT" in name else 1] for name in names
    ]
    for panel, key, unit, label in (
        (left, "hundred_steps_s", 1, "seconds for 100 steps"),
        (right, "beside_mb", 1e3, "GB beside the weights"),
    ):
        values = [case.get(key, 0) / unit for case in cases]
        bars = panel.barh(names, values, color=colours)
        texts = [
            f"{value:.3g}" if key in case else "fails"
            for case, value in zip(cases, values, strict=True)
        ]
        panel.bar_label(bars, texts, fontsize=7, padding=2)
        panel.set_xlabel(label, fontsize=8)
        panel.margins(x=0.12)
        panel.tick_params(labelsize=7)
    left.invert_yaxis()
    return figure


def _family(case: Mapping[str, Any]) -> str:
    """The name of a system without the rank, which is an axis or 8; roadint's is RoAd1's."""
    name = _RANK.sub("", case["system"])
    return "roadint RoAd1" if name == "roadint" else name


def _points(
    part: str, chosen: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float]]:
    axis = {"lengths": "tokens", "requests": "requests"}.get(part)
    if axis is not None:
        return sorted((case[axis], case["tokens_per_s"]) for case in chosen)
    ranks = sorted({rank for case in cases if (rank := _rank(case)) is not None}) or [1]
    points = []
    for case in chosen:
        rank = _rank(case)
        at = (ranks[0], ranks[-1]) if rank is None else (rank,)
        points += [(float(value), case["tokens_per_s"]) for value in at]
    return sorted(points)


def _rank(case: Mapping[str, Any]) -> int | None:
    """The rank of a system that is drawn by its rank."""
    found = _RANK.search(case["system"])
    return int(found[1]) if found and not case["system"].endswith(_MERGED) else None


def _finish(panel: Axes, part: str, cases: Sequence[Mapping[str, Any]]) -> None:
    marks = {
        "ranks": {_rank(case) for case in cases} - {None},
        "lengths": {case["tokens"] for case in cases},
        "requests": {case["requests"] for case in cases},
    }[part]
    panel.set_xscale("log", base=2)
    ticks = sorted(mark for mark in marks if mark is not None)
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.tick_params(labelsize=7)
    panel.set_xlabel(_PANELS[part], fontsize=8)
    panel.set_ylabel("generated tokens a second", fontsize=8)
