"""What was learned: angle and scale of every block."""

from collections.abc import Sequence
from typing import Any

from roadint.adapters.adapter import RoadAdapter
from roadint.inspection.angles import block_values
from roadint.interventions.road import RoadIntervention
from roadint.plots.heat import heat_figure
from roadint.plots.style import COLOURS, Figure
from roadint.rotation.rotation import canonical


def block_figure(interventions: Sequence[RoadIntervention]) -> Figure:
    """For each site a row: the angle of every block (degrees), its scale, and both as points of the plane, coloured by subspace."""
    figure = Figure(figsize=(12, 3.2 * len(interventions)), layout="constrained")
    for row, intervention in enumerate(interventions):
        values = block_values(intervention)
        angle_axes = figure.add_subplot(len(interventions), 3, 3 * row + 1)
        scale_axes = figure.add_subplot(len(interventions), 3, 3 * row + 2)
        plane: Any = figure.add_subplot(len(interventions), 3, 3 * row + 3, projection="polar")
        for (name, subspace), colour in zip(values["subspaces"].items(), COLOURS * 8, strict=False):
            entries = len(subspace["angles"][0])
            blocks = [block for block in subspace["blocks"] for _ in range(entries)]
            angles = [angle for block in subspace["angles"] for angle in block]
            scales = [scale for block in subspace["scales"] for scale in block]
            style: dict[str, Any] = {"color": colour, "s": 7, "alpha": 0.75, "linewidths": 0}
            angle_axes.scatter(blocks, [angle * 57.29578 for angle in angles], label=name, **style)
            scale_axes.scatter(blocks, scales, **style)
            plane.scatter(angles, scales, **style)
        where = f"layer {values['layer']}, {values['variant']}, basis {values['basis']}"
        angle_axes.set(
            xlabel="block", ylabel="angle θ (degrees)", title=f"angle of each block: {where}"
        )
        angle_axes.axhline(0, color="grey", linewidth=0.6)
        angle_axes.legend(markerscale=3, frameon=False, loc="best")
        scale_axes.set(
            xlabel="block", ylabel="scale α", title="scale of each block (1 = unchanged)"
        )
        scale_axes.title.set_fontsize(10)
        angle_axes.title.set_fontsize(10)
        scale_axes.axhline(1, color="grey", linewidth=0.6)
        plane.set_title("both (1 at 0° = unchanged)", fontsize=10)
        plane.tick_params(labelsize=8)
        plane.set_rlabel_position(180)
        plane.set_yticks([0.5, 1.0, 1.5, 2.0])
    return figure


def adapter_figure(adapter: RoadAdapter) -> Figure:
    """How far an adapter turns, in degrees: a heat map of the mean |θ| of each kind of linear layer, by layer of the model."""
    angles: dict[str, dict[int, float]] = {}
    for path in adapter.layout.paths:
        theta, alpha = adapter.held_values(path)
        number = next((int(part) for part in path.split(".") if part.isdigit()), 0)
        angles.setdefault(path.rpartition(".")[2], {})[number] = (
            float(canonical(theta, alpha)[0].abs().mean()) * 57.29578
        )
    layers = sorted({number for own in angles.values() for number in own})
    grid = [[own.get(number, float("nan")) for number in layers] for own in angles.values()]
    names = [str(number) for number in layers]
    return heat_figure(
        grid,
        list(angles),
        names,
        rows_are="linear layer",
        columns_are="layer of the model",
        values_are="mean |θ| (°)",
    )
