"""Angle and scale of every block, as numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from roadint.interventions.road import RoadIntervention
from roadint.rotation.rotation import canonical


def block_values(intervention: RoadIntervention) -> dict[str, Any]:
    """The site, and for each subspace its blocks with their canonical angles (radians, in [−π, π)) and scales (≥ 0).

    Returns the intervention's `spec()` with "subspaces": {name: {"range", "blocks", "angles", "scales",
    "mean_abs_angle", "max_abs_angle", "mean_abs_log_scale"}}; angles and scales hold one list a block, of 1, 2
    or 4 numbers by variant.
    """
    theta, alpha = canonical(intervention.theta.detach().cpu(), intervention.alpha.detach().cpu())
    subspaces = {}
    for name, subspace in intervention.partition.items():
        index = torch.tensor(subspace.blocks)
        angles, scales = theta[index].reshape(len(index), -1), alpha[index].reshape(len(index), -1)
        subspaces[name] = {
            "range": str(subspace),
            "blocks": subspace.blocks,
            "angles": angles.tolist(),
            "scales": scales.tolist(),
            **_extent(angles, scales),
        }
    return {**intervention.spec(), "subspaces": subspaces}


def adapter_values(spec: Mapping[str, Any], theta: Tensor, alpha: Tensor) -> dict[str, Any]:
    """An adapter's `spec()` and, for each kind of layer ("q_proj"), over all layers of the model how far its blocks turn and scale.

    theta, alpha: of all targets, end to end. Returns the spec with "kinds": {name: {"layers", "blocks", "mean_abs_angle",
    "max_abs_angle", "mean_abs_log_scale"}}.
    """
    angle, scale = canonical(theta, alpha)
    blocks = [width // 2 for width in spec["widths"]]
    kinds: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for path, angles, scales in zip(
        spec["paths"], torch.split(angle, blocks), torch.split(scale, blocks), strict=True
    ):
        kinds.setdefault(path.rpartition(".")[2], []).append((angles, scales))
    found = {}
    for kind, members in kinds.items():
        angles, scales = (torch.cat(each) for each in zip(*members, strict=True))
        found[kind] = {
            "layers": len(members),
            "blocks": len(angles),
            **_extent(angles, scales),
        }
    return {**spec, "kinds": found}


def _extent(angles: Tensor, scales: Tensor) -> dict[str, float]:
    """How far blocks turn and scale."""
    return {
        "mean_abs_angle": float(angles.abs().mean()),
        "max_abs_angle": float(angles.abs().max()),
        "mean_abs_log_scale": float(scales.clamp(min=1e-12).log().abs().mean()),
    }
