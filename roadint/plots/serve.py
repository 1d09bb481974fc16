"""The figure of `roadint bench serve`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from roadint.plots.style import COLOURS, Figure, add_legend, draw_line

_VALUES = {
    "tokens_per_s": "generated tokens a second",
    "ttft_s": "seconds to the first token, median",
}
_FRESH = ", new in every run"
_WIDE, _HIGH = 4.6, 3.2


def serve_figure(report: Mapping[str, Any]) -> Figure:
    """Tokens a second and the time to the first token, over how many compositions requests have.

    The bare engine, whose requests have none, is a level line; compositions that are new in every
    run are crosses.

    Args:
        report: The report of `roadint bench serve`. Every setting of the prefix cache becomes a
            column of panels.
    """
    timed = [case for case in report["cases"] if "tokens_per_s" in case]
    names = list(dict.fromkeys(case["name"] for case in timed)) or [""]
    systems = _systems(timed)
    counts = sorted({case["compositions"] for case in timed})
    colours = dict(zip(sorted(systems, key=_is_edited), ("#000000", *COLOURS[:-1]), strict=False))
    size = (_WIDE * len(names) + 2.4, _HIGH * len(_VALUES))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(_VALUES), len(names), squeeze=False, sharex=True, sharey="row")
    for column, name in enumerate(names):
        cases = [case for case in timed if case["name"] == name]
        panels[0, column].set_title(name, fontsize=9)
        for (value, label), panel in zip(_VALUES.items(), panels[:, column], strict=True):
            for system, colour in colours.items():
                _draw(panel, [case for case in cases if _of(case, system)], value, colour, counts)
            panel.tick_params(labelsize=7)
            if not column:
                panel.set_ylabel(label, fontsize=8)
        panel.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
        panel.set_xlabel(f"different compositions in {_requests(report)}requests", fontsize=8)
    for panel in panels[0]:  # once all are drawn, as they share their limits
        panel.set_ylim(bottom=0)
    for panel in panels[1]:  # systems differ by orders of magnitude
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
    add_legend(figure, panels.flat)
    return figure


def _systems(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """The systems that have a line: requests without edits belong to those with some subspaces."""
    names = dict.fromkeys(str(case["system"]).removesuffix(_FRESH) for case in cases)
    return [name for name in names if not any(other.startswith(f"{name},") for other in names)]


def _is_edited(system: str) -> bool:
    """The bare engine is drawn in black, and first."""
    return not system.startswith("bare")


def _of(case: Mapping[str, Any], system: str) -> bool:
    """Whether a case belongs to a system; requests without edits belong to all its subspaces."""
    own = str(case["system"].removesuffix(_FRESH))
    return own == system or (not case["compositions"] and system.startswith(f"{own},"))


def _draw(
    panel: Axes,
    cases: Sequence[Mapping[str, Any]],
    value: str,
    colour: str,
    counts: Sequence[int],
) -> None:
    if not cases:
        return
    label = max((str(case["system"]).removesuffix(_FRESH) for case in cases), key=len)
    if not _is_edited(label):
        panel.axhline(cases[0][value], color=colour, linewidth=1, label=label)
        return
    lines = [case for case in cases if not case["system"].endswith(_FRESH)]
    points = sorted((float(counts.index(case["compositions"])), case[value]) for case in lines)
    if points:
        draw_line(panel, points, color=colour, label=label)
    for case in cases:
        if case["system"].endswith(_FRESH):
            at = counts.index(case["compositions"])
            panel.plot(at, case[value], "x", color=colour, label=case["system"])


def _requests(report: Mapping[str, Any]) -> str:
    count = report.get("job", {}).get("requests")
    return f"{count:,} " if count else ""
