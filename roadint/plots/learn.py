"""The figure of `roadint bench learn`: the paper's figure 1, as measured."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

from roadint.plots.style import COLOURS, Figure

_NAMES = {
    "road_1": "RoAd1",
    "road_2": "RoAd2",
    "road_4": "RoAd4",
    "road_1+lora": "RoAd1 + LoRA",
    "lora": "LoRA",
    "dora": "DoRA",
    "ia3": "(IA)³",
    "oft": "OFT",
    "boft": "BOFT",
    "bitfit": "BitFit",
    "loreft": "LoReFT",
    "full": "full finetuning",
    "head": "head alone",
    "base": "untrained",
}
# Of a name beside its point, in points: the first that is free.
_PLACES = tuple(
    (far * x, far * y)
    for far in (5, 8, 12)
    for x, y in ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
)
_SHARES = [index / 20 for index in range(1, 20)]  # of the way from point to point
_COLUMNS = 3  # panels of a row
_ROAD = COLOURS[1]
_OTHERS: dict[str, str] = dict(
    zip(
        ("lora", "ia3", "oft", "loreft", "dora", "full", "bitfit", "boft"),
        (*COLOURS[:1], *COLOURS[2:6], *COLOURS[7:], "#666666", "#882255"),
        strict=True,
    )
)


def learn_figure(report: Mapping[str, Any], *others: Mapping[str, Any]) -> Figure:
    """What each method learns over how many numbers it trains, heads not counted.

    RoAd and what has it in it stand out; lines join the variants of RoAd, and the ranks of a
    method. What trains no number but a head's, or nothing, is a level line.

    Args:
        report: The report of `roadint bench learn`. Error bars are the standard deviation over
            seeds.
        others: Reports of other tasks, each of which has a panel beside it.
    """
    reports = [report, *others]
    columns = min(len(reports), _COLUMNS)
    rows = -(-len(reports) // columns)
    figure = Figure(figsize=(max(6.4, 4.6 * columns), 4.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    panels = list(itertools.islice(grid, len(reports)))
    for unused in grid:
        unused.set_axis_off()
    named = [_points(panel, each) for panel, each in zip(panels, reports, strict=True)]
    figure.draw_without_rendering()  # the layout decides where points are
    for panel, names in zip(panels, named, strict=True):
        _name(panel, names)
    return figure


def _points(panel: Axes, report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Draw one report; returns the names of its points, with their cases."""
    cases = report["cases"]
    for case in cases:
        if not case["numbers"]:
            score = 100 * case["test"]
            panel.axhline(score, color="grey", linewidth=0.8, linestyle=":")
            label = _NAMES.get(case["method"], case["method"])
            panel.annotate(
                label, (0, score), (3, 2), xycoords=("axes fraction", "data"),
                textcoords="offset points", fontsize=7, color="grey",
            )  # fmt: skip
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for case in cases:
        if case["numbers"]:
            curves.setdefault(_curve(case), []).append(case)
    names: list[tuple[str, Mapping[str, Any]]] = []
    for curve in curves.values():
        curve.sort(key=lambda case: case["numbers"])
        _draw(panel, curve)
        names += [(_label(case, curve[-1]), case) for case in curve]
    panel.set_xscale("log")
    panel.margins(x=0.12, y=0.14)
    job = report["job"]
    panel.set_title(f"{job['task']}, {job['model'].rstrip('/').rpartition('/')[2]}", fontsize=9)
    panel.set_xlabel("trained numbers, without heads", fontsize=8)
    panel.set_ylabel(f"{job['metric']} on test rows, × 100", fontsize=8)
    panel.tick_params(labelsize=7)
    return names


def _along(panel: Axes) -> Iterator[Bbox]:
    """Small boxes on the lines between points."""
    for line in panel.get_lines():
        points: Any = panel.transData.transform(line.get_xydata())
        for start, end in itertools.pairwise(points):
            for share in _SHARES:
                x, y = start + share * (end - start)
                yield Bbox.from_extents(x - 1, y - 1, x + 1, y + 1)


def _family(case: Mapping[str, Any]) -> str:
    return str(case.get("family", case["method"]))


def _curve(case: Mapping[str, Any]) -> str:
    """The line that a method's point is on."""
    family = _family(case)
    return "road" if family in ("road_1", "road_2", "road_4") else family


def _is_road(case: Mapping[str, Any]) -> bool:
    return _family(case).startswith("road")


def _colour(case: Mapping[str, Any]) -> str:
    return _ROAD if _is_road(case) else _OTHERS.get(_family(case), COLOURS[-1])


def _draw(panel: Axes, curve: list[Mapping[str, Any]]) -> None:
    road = _is_road(curve[0])
    joined = "+" in _family(curve[0])
    panel.errorbar(
        [case["numbers"] for case in curve],
        [100 * case["test"] for case in curve],
        [100 * (case["sd"] or 0) for case in curve],
        color=_colour(curve[0]),
        linestyle="--" if joined else "-",
        linewidth=1.2 if road else 0.8,
        marker="D" if joined else "o",
        markersize=5 if road else 4,
        elinewidth=0.7,
        capsize=2,
        zorder=3 if road else 2,
    )


def _label(case: Mapping[str, Any], largest: Mapping[str, Any]) -> str:
    """A method's name; along a line of ranks, that of the largest has it for all."""
    name = _NAMES.get(_family(case), str(case["method"]))
    if "rank" not in case:
        return name
    rank = f"r={case['rank']}"
    return f"{name} {rank}" if case is largest else rank


def _name(panel: Axes, names: list[tuple[str, Mapping[str, Any]]]) -> None:
    """Write names beside points, where they cover neither points nor each other, if they can."""
    taken = [text.get_window_extent() for text in panel.texts] + list(_along(panel))
    for _, case in names:
        x, score, spread = case["numbers"], 100 * case["test"], 100 * (case["sd"] or 0)
        ends = [(x, score - spread), (x, score), (x, score + spread)]
        (left, low), (_, middle), (right, high) = panel.transData.transform(ends)
        taken.append(Bbox.from_extents(left - 1, low, right + 1, high))
        taken.append(Bbox.from_extents(left - 5, middle - 5, right + 5, middle + 5))
    for label, case in sorted(names, key=lambda named: -len(named[0])):
        name = panel.annotate(
            label, (case["numbers"], 100 * case["test"]), (0, 0),
            textcoords="offset points", fontsize=7, color=_colour(case),
            weight="bold" if _is_road(case) else "normal", in_layout=False,
        )  # fmt: skip
        _, place = min(
            (_covered(_moved(name, place), taken, panel.bbox), number)
            for number, place in enumerate(_PLACES)
        )
        taken.append(_moved(name, _PLACES[place]))


def _moved(name: Annotation, place: tuple[int, int]) -> Bbox:
    """Put a name at an offset of its point, in points; returns the pixels that it covers."""
    x, y = place
    name.xyann = place
    name.set_horizontalalignment("center" if not x else "left" if x > 0 else "right")
    name.set_verticalalignment("center" if not y else "bottom" if y > 0 else "top")
    return name.get_window_extent()


def _covered(box: Bbox, taken: list[Bbox], panel: BboxBase) -> float:
    """How many pixels of what is drawn a name would cover, and how many lie outside."""
    parts = [Bbox.intersection(box, other) for other in taken]
    covered = sum(part.width * part.height for part in parts if part is not None)
    inside = Bbox.intersection(box, panel)
    shown = 0.0 if inside is None else inside.width * inside.height
    return round(covered + 2 * (box.width * box.height - shown), 3)
