"""Draw the pictures of the concepts: `make pictures`, or `python docs/pictures.py [FOLDER]`."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyArrowPatch, FancyBboxPatch, Rectangle

from roadint.plots.style import COLOURS

INK, GREY, PALE = "#1b2a3a", "#8795a5", "#e6eaee"
GERMAN, ENGLISH, *_ = COLOURS  # as in the app and in the plots
REACHED = "#cfe3f1"
HERE = Path(__file__).parent / "pictures"


def draw_blocks(folder: Path) -> None:
    """A hidden vector in blocks, and one of them turned."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.2, 2.5), width_ratios=(2.6, 1), layout="constrained"
    )
    _bare(left, (-0.3, 12.3), (-1.15, 1.5))
    for dim in range(12):
        colour = GERMAN if dim < 6 else ENGLISH
        left.add_patch(Rectangle((dim, 0), 1, 0.8, facecolor=colour, alpha=0.22, edgecolor="white"))
        left.text(dim + 0.5, 0.4, f"$h_{{{dim}}}$", ha="center", va="center", color=INK)
    for block in range(6):
        left.add_patch(Rectangle((2 * block, 0), 2, 0.8, fill=False, edgecolor=INK, linewidth=1.2))
        label = f"$\\theta_{block}, \\alpha_{block}$"
        left.text(2 * block + 1, 1.1, label, ha="center", va="center", color=INK, fontsize=10)
    for start, name, colour in (
        (0, "german   [0, d/2)", GERMAN),
        (6, "english   [d/2, d)", ENGLISH),
    ):
        left.plot([start + 0.1, start + 5.9], [-0.25, -0.25], color=colour, linewidth=2.5)
        left.text(start + 3, -0.75, name, ha="center", va="center", color=colour, weight="bold")

    _bare(right, (-0.25, 1.65), (-0.25, 1.5))
    right.set_aspect("equal")
    for end in ((1.5, 0), (0, 1.35)):
        right.add_patch(_arrow((0, 0), end, GREY, 1))
    right.text(1.5, -0.16, "$h_0$", color=GREY, ha="center")
    right.text(-0.15, 1.3, "$h_1$", color=GREY, ha="center")
    before, angle = np.array([1.1, 0.25]), 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    after = 1.12 * turn @ before
    right.add_patch(_arrow((0, 0), before, INK, 2))
    right.add_patch(_arrow((0, 0), after, GERMAN, 2.4))
    first = np.degrees(np.arctan2(before[1], before[0]))
    last = np.degrees(np.arctan2(after[1], after[0]))
    right.add_patch(Arc((0, 0), 1.1, 1.1, theta1=first, theta2=last, color=GERMAN))
    right.text(0.58, 0.36, "$\\theta_0$", color=GERMAN)
    right.text(*(after + 0.06), "$\\times\\,\\alpha_0$", color=GERMAN)
    _save(figure, folder / "blocks.png")


def draw_positions(folder: Path) -> None:
    """Where an edit acts, and what it reaches."""
    figure, axes = plt.subplots(figsize=(7.4, 3.3), layout="constrained")
    tokens = ["How", "can", "I", "learn", "###", "Response", ":", "Ich", "kann", "…"]
    layers, edited, prompt = 8, {(2, 5), (2, 6), (4, 5), (4, 6)}, 7
    _bare(axes, (-1.6, len(tokens)), (-1.3, layers + 0.7))
    for layer in range(layers):
        axes.text(-0.35, layer + 0.4, f"layer {layer}", ha="right", va="center", color=GREY)
        for column in range(len(tokens)):
            reached = layer > 2 and column >= 5
            colour = GERMAN if (layer, column) in edited else REACHED if reached else PALE
            box = FancyBboxPatch(
                (column + 0.08, layer + 0.1),
                0.84,
                0.62,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=colour,
                edgecolor="none",
            )
            axes.add_patch(box)
    for column, token in enumerate(tokens):
        colour = INK if column < prompt else GREY
        axes.text(column + 0.5, -0.35, token, ha="center", va="center", color=colour)
    axes.plot([0.1, prompt - 0.1], [-0.75, -0.75], color=INK, linewidth=1)
    axes.text(prompt / 2, -1.1, "prompt", ha="center", va="center", color=INK)
    axes.plot([prompt + 0.1, len(tokens) - 0.1], [-0.75, -0.75], color=GREY, linewidth=1)
    middle = (prompt + len(tokens)) / 2
    axes.text(middle, -1.1, "generated", ha="center", va="center", color=GREY)
    axes.set_title(
        "layers 2 and 4, last(2): edited (dark), and what attention carries on (pale)",
        fontsize=10,
        color=INK,
    )
    _save(figure, folder / "positions.png")


def draw_batch(folder: Path) -> None:
    """From compositions to rows of numbers to tokens."""
    figure, axes = plt.subplots(figsize=(8.2, 2.9), layout="constrained")
    _bare(axes, (0, 16.4), (-0.5, 4.6))
    rows = [("none", ()), ("german", (0,)), ("german + english", (0, 1)), ("0.5*english", (2,))]
    shades = {0: (GERMAN, 0.85), 1: (ENGLISH, 0.85), 2: (ENGLISH, 0.4)}
    for index, (text, parts) in enumerate(rows):
        y = 3 - index
        axes.text(2.9, y + 0.35, text, ha="right", va="center", family="monospace", color=INK)
        axes.add_patch(_arrow((3.1, y + 0.35), (4.1, y + 0.35), GREY, 1))
        for half in (0, 1):
            part = next((part for part in parts if (0 if part == 0 else 1) == half), None)
            colour, alpha = (PALE, 1.0) if part is None else shades[part]
            for block in range(3):
                corner = (4.4 + 0.62 * (3 * half + block), y + 0.08)
                axes.add_patch(Rectangle(corner, 0.56, 0.54, facecolor=colour, alpha=alpha))
        axes.add_patch(_arrow((8.3, y + 0.35), (9.3, y + 0.35), GREY, 1))
        for column in range(9):
            edited = bool(parts) and column in (5, 6)
            colour = INK if edited else PALE
            axes.add_patch(Rectangle((9.6 + 0.62 * column, y + 0.08), 0.56, 0.54, facecolor=colour))
    axes.text(2.9, 4.25, "composition, one a row", ha="right", color=GREY)
    axes.text(6.2, 4.25, "lowered once: u of every block", ha="center", color=GREY)
    axes.text(12.4, 4.25, "token → row → one multiply-add", ha="center", color=GREY)
    _save(figure, folder / "batch.png")


def _bare(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set(xlim=x, ylim=y)
    axes.axis("off")


def _arrow(
    start: tuple[float, float], end: tuple[float, float], colour: str, width: float
) -> FancyArrowPatch:
    return FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=width, shrinkB=0
    )


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    folder = parser.parse_args().folder
    for draw in (draw_blocks, draw_positions, draw_batch):
        draw(folder)
