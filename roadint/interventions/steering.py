"""Steering vectors: learned directions that are added to a hidden state."""

import torch
from torch import Tensor, nn

from roadint.files.rules import Shapes
from roadint.interventions.additive import AdditiveIntervention
from roadint.interventions.registry import register


@register("steering")
class SteeringIntervention(AdditiveIntervention):
    """`h + s·v`: a learned vector for each unit, zero at the start.

    There are `rank` units: for one vector a subspace, it is the number of subspaces.
    """

    @classmethod
    def _shapes(cls, rank: int, width: int) -> Shapes:
        return {"vectors": (rank, width)}

    def _make_parameters(self, width: int) -> None:
        self.vectors = nn.Parameter(torch.zeros(self.rank, width, dtype=torch.float32))

    def _current(self) -> tuple[Tensor, ...]:
        return (self.vectors,)

    def _added(self, h: Tensor, strengths: Tensor, *values: Tensor) -> Tensor:
        del h
        return strengths @ values[0]

    def _rescale(self, strengths: Tensor) -> None:
        self.vectors.mul_(strengths[:, None])
