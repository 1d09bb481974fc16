"""How it was learned: losses by step."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.plots.style import COLOURS, Figure


def training_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """The loss of each composition by step. history: the entries of a run's log.jsonl, or of a Trainer's state.log_history."""
    names = list(
        dict.fromkeys(key for entry in history for key in entry if key.startswith("loss/"))
    )
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes: Any = figure.subplots()
    for name, colour in zip(names or ["loss"], COLOURS * 8, strict=False):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker="o",
            markersize=3,
            label=name.removeprefix("loss/"),
        )
    axes.set(xlabel="step", ylabel="nats a token, in training")
    axes.legend(frameon=False)
    return figure
