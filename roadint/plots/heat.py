"""Numbers as a heat map, as a figure or in a panel of one."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from roadint.plots.style import Figure

Grid = Sequence[Sequence[float]]


def heat_figure(
    grid: Grid,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    rows_are: str,
    columns_are: str,
    values_are: str,
) -> Figure:
    """Numbers as a labelled heat map.

    Args:
        grid: The numbers; what is not a number (NaN) stays white.
        rows: The names of the grid's rows.
        columns: The names of its columns.
        rows_are: The label of the rows' axis.
        columns_are: The label of the columns' axis.
        values_are: The label of the colour scale, with the unit.
    """
    known = [value for row in grid for value in row if value == value]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    figure = Figure(figsize=(2.6 + 0.8 * len(columns), 1.6 + 0.5 * len(rows)), layout="constrained")
    panel = figure.add_subplot()
    image = draw_heat(panel, grid, rows, columns, dark=lambda value: value < middle, cmap="viridis")
    panel.set(xlabel=columns_are, ylabel=rows_are)
    figure.colorbar(image, ax=panel, label=values_are)
    return figure


def draw_heat(
    panel: Axes,
    grid: Grid,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    dark: Callable[[float], bool],
    form: str = ".2f",
    **colours: Any,
) -> AxesImage:
    """Draw numbers as colours, with the numbers as text.

    Args:
        panel: The panel to draw in.
        grid: The numbers; what is not a number (NaN) stays white.
        rows: The names of the grid's rows.
        columns: The names of its columns.
        dark: Whether a number's colour is dark, so that its text is white.
        form: The format of numbers.
        **colours: cmap, vmin and vmax, as `Axes.imshow` takes them.

    Returns:
        The image, for a colour scale.
    """
    image = panel.imshow(grid, aspect="auto", **colours)
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            if value == value:
                colour = "white" if dark(value) else "black"
                text = f"{value:{form}}"
                panel.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), rows)
    return image
