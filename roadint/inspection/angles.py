"""The angle and scale of every block, as numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from roadint.interventions.base import SubspaceIntervention
from roadint.rotation.rotation import canonical


def turns_blocks(intervention: SubspaceIntervention) -> bool:
    """Whether an intervention has blocks with angles and scales, to print and to draw."""
    return intervention.angles_and_scales() is not None


def intervention_values(
    intervention: SubspaceIntervention, strengths: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The values of an intervention, as plain JSON values.

    Args:
        intervention: The intervention.
        strengths: Subspace → the strength at which its values are wanted; 1 by default.

    Returns:
        The intervention's `summary()`. Where it turns blocks, "subspaces" is {name: {"range",
        "blocks", "angles", "scales", "mean_abs_angle", "max_abs_angle", "mean_abs_log_scale"}};
        angles (radians, in [−π, π)) and scales (≥ 0) hold one list a block, of 1, 2 or 4 numbers
        by variant.
    """
    if not turns_blocks(intervention):
        return intervention.summary()
    subspaces = {}
    for name, subspace in intervention.partition.items():
        strength = (strengths or {}).get(name, 1.0)
        # Kinds of one's own may know strength 1 alone.
        theta, alpha = intervention.angles_and_scales(*([] if strength == 1 else [strength]))  # type: ignore[misc]
        index = torch.tensor(subspace.blocks)
        angles, scales = (values[index].reshape(len(index), -1) for values in (theta, alpha))
        subspaces[name] = {
            "range": str(subspace),
            "blocks": subspace.blocks,
            "angles": angles.tolist(),
            "scales": scales.tolist(),
            **_extent(angles, scales),
        }
    return {**intervention.summary(), "subspaces": subspaces}


def adapter_values(
    spec: Mapping[str, Any], theta: Float[Tensor, "blocks ..."], alpha: Float[Tensor, "blocks ..."]
) -> dict[str, Any]:
    """How far the blocks of an adapter turn and scale, by the layer's last name ("q_proj").

    Args:
        spec: The adapter's arguments.
        theta: The angles of all targets, end to end, in radians.
        alpha: The scales of all targets, end to end.

    Returns:
        The spec with "kinds": {name: {"layers", "blocks", "mean_abs_angle", "max_abs_angle",
        "mean_abs_log_scale"}}, over all layers of the model.
    """
    angle, scale = canonical(theta, alpha)
    blocks = [width // 2 for width in spec["widths"]]
    values = zip(spec["paths"], torch.split(angle, blocks), torch.split(scale, blocks), strict=True)
    by_layer: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for path, angles, scales in values:
        by_layer.setdefault(path.rpartition(".")[2], []).append((angles, scales))
    kinds = {}
    for name, members in by_layer.items():
        angles, scales = (torch.cat(parts) for parts in zip(*members, strict=True))
        extent = _extent(angles, scales)
        kinds[name] = {"layers": len(members), "blocks": len(angles), **extent}
    return {**spec, "kinds": kinds}


def _extent(angles: Tensor, scales: Tensor) -> dict[str, float]:
    """Statistics of how far blocks turn and scale."""
    return {
        "mean_abs_angle": float(angles.abs().mean()),
        "max_abs_angle": float(angles.abs().max()),
        "mean_abs_log_scale": float(scales.clamp(min=1e-12).log().abs().mean()),
    }
