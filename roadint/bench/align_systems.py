"""The systems of `roadint bench align`: interchanges that look for two variables."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from roadint.bench.equality import Hidden
from roadint.interventions.interchange import RoadInterchange
from roadint.interventions.pyvene.patches import pyvene

Swap = Callable[[Hidden, Hidden, int], Hidden]  # (base, source, variable) → the edited base


class AlignmentSystem:
    """A way to look for the variables, and what its training needs.

    Args:
        name: The name in reports.
        swap: The interchange of a variable.
        modules: The modules that train.
        lr: Adam's learning rate.

    Attributes:
        seconds: The seconds of the training steps so far.
    """

    def __init__(self, name: str, swap: Swap, modules: list[nn.Module], lr: float) -> None:
        self.name, self.swap, self.modules = name, swap, nn.ModuleList(modules)
        self.optimizer = torch.optim.Adam(self.modules.parameters(), lr)
        self.seconds: list[float] = []

    @property
    def trained(self) -> int:
        """How many numbers train."""
        return sum(value.numel() for value in self.modules.parameters() if value.requires_grad)


def interchange_systems(width: int, device: torch.device) -> list[AlignmentSystem]:
    """Make roadint's systems, with a half of the dims for each variable.

    Args:
        width: The width of the hidden states.
        device: The device of the hidden states.

    Returns:
        One rotation of neighbouring pairs; log2(width) rotations at growing strides; twice as many.
    """
    stages = max(2, int(math.log2(width & -width)))
    return [_interchange(count, width, device) for count in (1, stages, 2 * stages)]


def _interchange(stages: int, width: int, device: torch.device) -> AlignmentSystem:
    halves = {"first": "[0, d/2)", "second": "[d/2, d)"}
    interchange = RoadInterchange(embed_dim=width, subspaces=halves, stages=stages).to(device)
    name = f"roadint, {stages} rotation{'s' * (stages > 1)}"
    return AlignmentSystem(name, _by_subspace(interchange, list(halves)), [interchange], 5e-2)


def _full(width: int, device: torch.device) -> AlignmentSystem:
    """DAS: a full rotation, a half of it for each variable."""
    halves = [[0, width // 2], [width // 2, width]]
    rotated = pyvene.RotatedSpaceIntervention(embed_dim=width, subspace_partition=halves).to(device)
    return AlignmentSystem("pyvene RotatedSpace", _by_subspace(rotated, [0, 1]), [rotated], 1e-3)


def _low_rank(width: int, device: torch.device) -> AlignmentSystem:
    """Two subspaces of an eighth of the width."""
    rank = max(1, width // 8)
    rotated = pyvene.LowRankRotatedSpaceIntervention(
        embed_dim=width,
        low_rank_dimension=2 * rank,
        subspace_partition=[[0, rank], [rank, 2 * rank]],
    ).to(device)
    name = f"pyvene LowRankRotatedSpace, 2 x {rank}"
    return AlignmentSystem(name, _by_subspace(rotated, [0, 1]), [rotated], 1e-3)


def _boundless(width: int, device: torch.device) -> AlignmentSystem:
    """Boundless DAS: a full rotation and a boundary for each variable."""
    rotated = [pyvene.BoundlessRotatedSpaceIntervention(embed_dim=width).to(device) for _ in "ab"]

    def swap(base: Hidden, source: Hidden, variable: int) -> Hidden:
        edited: Hidden = rotated[variable](base, source)
        return edited

    return AlignmentSystem("pyvene BoundlessRotatedSpace, one a variable", swap, rotated, 1e-3)


def _by_subspace(intervention: Any, subspaces: list[Any]) -> Swap:
    """Swap a variable by exchanging its subspace."""

    def swap(base: Hidden, source: Hidden, variable: int) -> Hidden:
        chosen = [[subspaces[variable]]] * len(base)
        edited: Hidden = intervention(base, source, subspaces=chosen)
        return edited

    return swap


# pyvene's classes.
RIVALS: dict[str, Callable[[int, torch.device], AlignmentSystem]] = {
    "RotatedSpace": _full,
    "LowRankRotatedSpace": _low_rank,
    "BoundlessRotatedSpace": _boundless,
}
