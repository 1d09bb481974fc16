"""Style of all figures: colours, lines, and a Figure that notebooks show."""

import io
from collections.abc import Iterable
from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes

# Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


class Figure(matplotlib.figure.Figure):
    """A matplotlib Figure that belongs to no window; a notebook shows it without pyplot."""

    def _repr_png_(self) -> bytes:
        written = io.BytesIO()
        self.savefig(written, format="png", dpi=100)
        return written.getvalue()


def draw_line(panel: Axes, points: Iterable[tuple[float, float]], **style: Any) -> None:
    """Draw a line with a small dot at each of its points.

    Args:
        panel: The panel to draw in.
        points: (x, y), at least one.
        **style: As `Axes.plot` takes it.
    """
    panel.plot(*zip(*points, strict=True), **{"marker": "o", "markersize": 3, **style})


def add_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """Name the lines of all panels beside them, each once; nothing where there is none."""
    entries: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        figure.legend(
            entries.values(), entries.keys(), loc="outside right upper", fontsize=7, frameon=False
        )
