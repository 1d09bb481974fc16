"""Figures of learned blocks: the angle and scale of every block."""

from collections.abc import Mapping, Sequence
from math import cos, degrees, sin
from typing import Any

from roadint.adapters.adapter import RoadAdapter
from roadint.errors import RoadError, listing
from roadint.inspection.angles import intervention_values, turns_blocks
from roadint.interventions.base import SubspaceIntervention
from roadint.plots.heat import heat_figure
from roadint.plots.style import COLOURS, Figure
from roadint.rotation.rotation import canonical


def block_figure(interventions: Sequence[SubspaceIntervention]) -> Figure:
    """The blocks of interventions that turn blocks, coloured by subspace.

    Every intervention has a line of three panels: angles (degrees), scales, and both as points of
    the complex plane, α e^{iθ}, around 1, which changes nothing.

    Raises:
        RoadError: where none of them turns blocks.
    """
    turning = [intervention for intervention in interventions if turns_blocks(intervention)]
    if not turning:
        kinds = listing(intervention.kind for intervention in interventions)
        raise RoadError(f"no rotations of hidden states to draw, only {kinds}")
    figure = Figure(figsize=(12, 3.2 * len(turning)), layout="constrained")
    for line, intervention in enumerate(turning):
        grid = (len(turning), 3)
        panels = [figure.add_subplot(*grid, 3 * line + panel) for panel in (1, 2, 3)]
        values = intervention_values(intervention)
        colours = zip(values["subspaces"].items(), COLOURS * 8, strict=False)
        for (name, subspace), colour in colours:
            _draw_points(subspace, name, colour, *panels)
        basis = f", basis {values['basis']}" if "basis" in values else ""
        title = f"layer {intervention.layer}, {intervention.short_name}{basis}"
        _label(title, *panels)
    return figure


def _draw_points(
    subspace: Mapping[str, Any],
    name: str,
    colour: str,
    angle_axes: Any,
    scale_axes: Any,
    plane: Any,
) -> None:
    entries = len(subspace["angles"][0])
    blocks = [block for block in subspace["blocks"] for _ in range(entries)]
    angles = [angle for block in subspace["angles"] for angle in block]
    scales = [scale for block in subspace["scales"] for scale in block]
    style: dict[str, Any] = {"color": colour, "s": 7, "alpha": 0.75, "linewidths": 0}
    angle_axes.scatter(blocks, [degrees(angle) for angle in angles], label=name, **style)
    scale_axes.scatter(blocks, scales, **style)
    values = [
        (scale * cos(angle), scale * sin(angle))
        for angle, scale in zip(angles, scales, strict=True)
    ]
    plane.scatter(*zip(*values, strict=True), **style)


def _label(title: str, angle_axes: Any, scale_axes: Any, plane: Any) -> None:
    angle_axes.set(
        xlabel="block", ylabel="angle θ (degrees)", title=f"angle of each block: {title}"
    )
    angle_axes.axhline(0, color="grey", linewidth=0.6)
    angle_axes.legend(markerscale=3, frameon=False, loc="best")
    scale_axes.set(xlabel="block", ylabel="scale α", title="scale of each block (1 = unchanged)")
    scale_axes.axhline(1, color="grey", linewidth=0.6)
    for axes in (angle_axes, scale_axes):
        axes.title.set_fontsize(10)
    plane.set(xlabel="α cos θ", ylabel="α sin θ", title="both, around 1 = unchanged")
    plane.title.set_fontsize(10)
    plane.set_aspect("equal", adjustable="datalim")
    plane.axhline(0, color="grey", linewidth=0.6)
    plane.axvline(1, color="grey", linewidth=0.6)


def adapter_figure(adapter: RoadAdapter) -> Figure:
    """How far an adapter turns: the mean |θ| (degrees) of linear layers, by layer of the model.

    Args:
        adapter: The adapter.
    """
    angles: dict[str, dict[int, float]] = {}
    for path in adapter.layout.paths:
        theta, _ = canonical(*adapter.held_values(path))
        layer = next((int(part) for part in path.split(".") if part.isdigit()), 0)
        angles.setdefault(path.rpartition(".")[2], {})[layer] = degrees(float(theta.abs().mean()))
    layers = sorted({layer for by_layer in angles.values() for layer in by_layer})
    grid = [[by_layer.get(layer, float("nan")) for layer in layers] for by_layer in angles.values()]
    return heat_figure(
        grid,
        list(angles),
        [str(layer) for layer in layers],
        rows_are="linear layer",
        columns_are="layer of the model",
        values_are="mean |θ| (°)",
    )
