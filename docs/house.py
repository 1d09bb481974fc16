"""Draw the house: the rooms of roadint, their floors and what imports what, read from the code.

`make house`, or `python docs/house.py [PICTURE]`. A room is a folder or a file at the top of the
package, and its floor is the longest way down from it. An arrow up, drawn in red, is one that
closes a circle. Arrows that only shorten a way which others go are pale.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grimp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

ROOT = Path(__file__).parents[1]
PACKAGE = "roadint"
INK, GREY, RED, FLOOR = "#1b2a3a", "#8795a5", "#d1372b", "#f4f6f8"
SHADES = ("#e8f0f8", "#bcd4ea")  # few lines of code, many
BOX_HEIGHT, FLOOR_HEIGHT, HALF_WIDTH = 0.52, 1.06, 4.4

Arrow = tuple[str, str]
Box = tuple[float, float, float]  # x and y of the middle, width
BENDS = np.arange(-16, 17) / 4  # of a curve's inner points


@dataclass(frozen=True)
class House:
    """What the code says of itself.

    Attributes:
        lines: Room to its lines of code.
        arrows: (importer, imported).
        floors: Room to its floor, counted from 0 at the ground.
        up: The arrows that close a circle.
    """

    lines: dict[str, int]
    arrows: set[Arrow]
    floors: dict[str, int]
    up: set[Arrow]

    def report(self) -> str:
        """The figures, one a line."""
        figures = {
            "rooms": len(self.lines),
            "floors": 1 + max(self.floors.values()),
            "arrows": len(self.arrows),
            "arrows up": len(self.up),
            "circles": len(circles(self.lines, self.arrows)),
            "lines": sum(self.lines.values()),
        }
        return "\n".join(f"{name:<10}{figure:>7,}" for name, figure in figures.items())


def survey() -> House:
    """Read the house from the package's own imports, those inside of functions included."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = {name.split(".")[1] for name in graph.find_children(PACKAGE)} - {"__main__"}
    arrows = {
        (room_of(importer), room_of(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    arrows = {pair for pair in arrows if pair[0] != pair[1] and rooms.issuperset(pair)}
    up = {
        (room_of(importer), room_of(imported))
        for importer, imported in graph.nominate_cycle_breakers(PACKAGE)
    }
    lines = {room: lines_of(room) for room in sorted(rooms)}
    return House(lines, arrows, floors_of(lines, arrows - up), up)


def room_of(module: str) -> str:
    """The room that a module is in; the package itself is in none."""
    return [*module.split("."), ""][1]


def lines_of(room: str) -> int:
    """Lines of a room's files that are not blank."""
    path = ROOT / PACKAGE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return sum(
        bool(line.strip()) for file in files for line in file.read_text("utf-8").splitlines()
    )


def floors_of(rooms: Iterable[str], down: set[Arrow]) -> dict[str, int]:
    """The longest way down from each room; `down` has no circle."""
    floors = dict.fromkeys(rooms, 0)
    for _ in floors:
        for importer, imported in down:
            floors[importer] = max(floors[importer], floors[imported] + 1)
    return floors


def circles(rooms: Iterable[str], arrows: Iterable[Arrow]) -> set[frozenset[str]]:
    """The sets of rooms that reach one another."""
    reach = {
        room: {imported for importer, imported in arrows if importer == room} for room in rooms
    }
    for middle in reach:
        for below in reach.values():
            if middle in below:
                below |= reach[middle]
    return {
        frozenset(other for other in below if room in reach[other])
        for room, below in reach.items()
        if room in below
    }


def needed(arrows: set[Arrow]) -> set[Arrow]:
    """The arrows that no longer way replaces; `arrows` has no circle."""
    below: dict[str, set[str]] = {}
    for importer, imported in arrows:
        below.setdefault(importer, set()).add(imported)

    def all_below(room: str) -> set[str]:
        return set().union(*({other} | all_below(other) for other in below.get(room, ())))

    return {
        (importer, imported)
        for importer, imported in arrows
        if not any(imported in all_below(other) for other in below[importer])
    }


def boxes_of(house: House, strong: set[Arrow]) -> dict[str, Box]:
    """Where each room stands: on its floor, near the rooms that it has to do with."""
    widths = {room: 0.66 + 0.1 * len(room) for room in house.lines}
    floors = [
        [room for room in house.lines if house.floors[room] == floor]
        for floor in range(1 + max(house.floors.values()))
    ]
    x = dict.fromkeys(house.lines, 0.0)

    def middle(room: str) -> tuple[float, str]:
        near = [x[pair[pair[0] == room]] for pair in strong if room in pair]
        return sum(near) / max(len(near), 1), room

    for turn in range(40):
        for row in floors if turn % 2 == 0 else reversed(floors):
            row.sort(key=middle)
            free = 2 * HALF_WIDTH - sum(widths[room] for room in row)
            gap = min(free / (len(row) + 1), 1.3)
            start = -(sum(widths[room] for room in row) + gap * (len(row) - 1)) / 2
            for room in row:
                x[room] = start + widths[room] / 2
                start += widths[room] + gap
    return {
        room: (x[room], FLOOR_HEIGHT * house.floors[room], widths[room]) for room in house.lines
    }


def draw(house: House, picture: Path) -> None:
    """Draw it: boxes on floors, arrows down in grey, arrows up in red."""
    strong = needed(house.arrows - house.up)
    boxes = boxes_of(house, strong)
    top = FLOOR_HEIGHT * max(house.floors.values())
    left = -HALF_WIDTH - 0.5
    figure, axes = plt.subplots(figsize=(1.1 * (HALF_WIDTH - left), top + 2.0))
    axes.set(xlim=(left, HALF_WIDTH), ylim=(-0.5, top + 1.0))
    axes.axis("off")
    for floor in range(1 + max(house.floors.values())):
        y = FLOOR_HEIGHT * floor
        axes.axhspan(y - BOX_HEIGHT / 2 - 0.1, y + BOX_HEIGHT / 2 + 0.1, color=FLOOR, zorder=0)
        axes.text(left + 0.15, y, str(floor), color=GREY, fontsize=10, va="center")
    for pair in house.arrows:
        ends = boxes[pair[0]], boxes[pair[1]]
        way = way_around(*ends, boxes.values()) if pair in strong else straight(*ends)
        draw_arrow(axes, way, pair in house.up, pair in strong)
    most = max(house.lines.values())
    for room, box in boxes.items():
        draw_box(axes, room, box, house.lines[room], (house.lines[room] / most) ** 0.5)
    axes.text(left + 0.15, top + 0.75, PACKAGE, color=INK, fontsize=16, weight="bold", va="center")
    summary = (
        f"{len(house.lines)} rooms on {1 + max(house.floors.values())} floors · "
        f"{len(house.arrows)} arrows, {len(house.up)} up · {sum(house.lines.values()):,} lines"
    )
    axes.text(
        HALF_WIDTH - 0.1, top + 0.75, summary, fontsize=10, color=GREY, ha="right", va="center"
    )
    figure.savefig(picture, dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def straight(importer: Box, imported: Box) -> np.ndarray:
    """The four points of a curve from the bottom of a box to the top of another, not bent yet."""
    half = BOX_HEIGHT / 2 if importer[1] > imported[1] else -BOX_HEIGHT / 2
    start = np.array([importer[0], importer[1] - half])
    end = np.array([imported[0], imported[1] + half])
    return np.stack([start, (2 * start + end) / 3, (start + 2 * end) / 3, end])


def way_around(importer: Box, imported: Box, boxes: Iterable[Box]) -> np.ndarray:
    """The four points of the curve that is bent as little as keeps it off the boxes."""
    line = straight(importer, imported)
    shifts = np.array(sorted(itertools.product(BENDS, BENDS), key=lambda pair: np.hypot(*pair)))
    curves = np.repeat(line[None], len(shifts), axis=0)
    curves[:, 1:3, 0] += shifts
    t = np.linspace(0, 1, 60)[1:-1, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    x, y = np.moveaxis(weights @ curves, -1, 0)
    covered = abs(x) > HALF_WIDTH
    for middle, height, width in boxes:
        beside = abs(x - middle) > width / 2 + 0.04
        covered |= ~beside & (abs(y - height) < BOX_HEIGHT / 2 - 0.01)
    best: np.ndarray = curves[covered.sum(1).argmin()]
    return best


def draw_arrow(axes: Axes, way: np.ndarray, up: bool, strong: bool) -> None:
    """One arrow along a curve, in red where it points up."""
    axes.add_patch(
        FancyArrowPatch(
            path=Curve(way, [Curve.MOVETO] + 3 * [Curve.CURVE4]),
            arrowstyle="-|>,head_length=4,head_width=2",
            color=RED if up else GREY,
            alpha=1.0 if up else 0.9 if strong else 0.25,
            linewidth=2.0 if up else 1.2 if strong else 0.6,
            zorder=4 if up else 1,
        )
    )


def draw_box(axes: Axes, room: str, box: Box, lines: int, shade: float) -> None:
    """One room with its lines of code, the darker the more."""
    x, y, width = box
    few, many = ([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in SHADES)
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - BOX_HEIGHT / 2),
            width,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=[a + shade * (b - a) for a, b in zip(few, many, strict=True)],
            edgecolor=INK,
            linewidth=0.9,
            zorder=2,
        )
    )
    axes.text(x, y + 0.08, room, ha="center", va="center", fontsize=10, color=INK, zorder=3)
    axes.text(
        x, y - 0.13, f"{lines:,}", ha="center", va="center", fontsize=7.5, color="#51606f", zorder=3
    )


def main() -> int:
    """Draw the picture and print the figures; 1 where something points up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "picture", nargs="?", type=Path, default=ROOT / "docs" / "pictures" / "house.png"
    )
    picture = parser.parse_args().picture
    house = survey()
    draw(house, picture)
    print(house.report())
    for importer, imported in sorted(house.up):
        print(f"up: {importer} → {imported}")
    return int(bool(house.up))


if __name__ == "__main__":
    sys.exit(main())
