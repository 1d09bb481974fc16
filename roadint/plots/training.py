"""The figure of a training: losses by step."""

from collections.abc import Mapping, Sequence

from roadint.plots.style import COLOURS, Figure, draw_line


def training_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """The loss of every composition by step, in nats a token.

    Args:
        history: The entries of a run's log.jsonl, or of a Trainer's state.log_history.
    """
    names = list(
        dict.fromkeys(key for entry in history for key in entry if key.startswith("loss/"))
    )
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in zip(names or ["loss"], COLOURS * 8, strict=False):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        draw_line(axes, points, color=colour, label=name.removeprefix("loss/"))
    axes.set(xlabel="step", ylabel="nats a token, in training")
    axes.legend(frameon=False)
    return figure
