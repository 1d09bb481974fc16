"""The figure of `roadint bench compose`: success over how far a method moves the model."""

from collections.abc import Mapping
from typing import Any

from roadint.plots.style import COLOURS, Figure, add_legend, draw_line

_NAMES = {
    "road": "RoAd1",
    "loreft": "LoReFT",
    "lora": "LoRA, added",
    "means": "difference of means",
    "prompt": "asked in the prompt",
}
_COLOURS = dict(zip(_NAMES, (COLOURS[1], COLOURS[0], *COLOURS[2:5]), strict=True))
_COLUMNS = 3  # panels of a row


def compose_figure(report: Mapping[str, Any]) -> Figure:
    """Success over the divergence from the base model, a line a method, a panel a composition.

    Points of a line are strengths, from the base model's on; a ring is strength 1. What a prompt
    asks for has no divergence, and is a level line.

    Args:
        report: The report of `roadint bench compose`.
    """
    names = list(report["job"]["asks"])
    columns = min(len(names), _COLUMNS)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.6, 2.9 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[len(names) :]:
        unused.set_axis_off()
    for panel, name in zip(grid, names, strict=False):
        cases = [case for case in report["cases"] if case["composition"] == name]
        start = [case for case in cases if case["method"] == "base"]
        for method, label in _NAMES.items():
            own = [case for case in cases if case["method"] == method]
            if not own:
                continue
            style: dict[str, Any] = {"color": _COLOURS[method], "label": label}
            if method == "prompt":
                panel.axhline(own[0]["success"], linestyle="--", linewidth=1, **style)
                continue
            curve = sorted([*start, *own], key=lambda case: float(case["strength"]))
            draw_line(panel, [(case["kl"], case["success"]) for case in curve], **style)
            whole = [case for case in own if case["strength"] == 1.0]
            draw_line(
                panel,
                [(case["kl"], case["success"]) for case in whole],
                color=_COLOURS[method], markersize=7, fillstyle="none", linestyle="",
            )  # fmt: skip
        panel.set_title(name, fontsize=8)
        panel.set_ylim(-0.03, 1.03)
        panel.set_xlabel("KL from the base model, nats a token", fontsize=7)
        panel.set_ylabel("success", fontsize=7)
        panel.tick_params(labelsize=7)
    add_legend(figure, grid[: len(names)])
    return figure
