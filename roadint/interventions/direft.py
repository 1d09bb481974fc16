"""DiReFT with subspaces ("ReFT", arXiv 2404.03592, equation 4): LoReFT without orthogonality."""

import torch
from torch import Tensor, nn

from roadint.files.rules import Shapes
from roadint.interventions.additive import AdditiveIntervention
from roadint.interventions.registry import register


@register("direft")
class DireftIntervention(AdditiveIntervention):
    """`h + W2ᵀ(W1 h + b)`, whose units are the matrix rows of W2.

    `learned_source` holds W1 and b, `proj_layer` W2.
    """

    @classmethod
    def _shapes(cls, rank: int, width: int) -> Shapes:
        return {
            "learned_source.weight": (rank, width),
            "learned_source.bias": (rank,),
            "proj_layer.weight": (rank, width),
        }

    def _make_parameters(self, width: int) -> None:
        self.learned_source = nn.Linear(width, self.rank, dtype=torch.float32)
        self.proj_layer = nn.Linear(width, self.rank, bias=False, dtype=torch.float32)

    def _current(self) -> tuple[Tensor, ...]:
        return self.learned_source.weight, self.learned_source.bias, self.proj_layer.weight

    def _added(self, h: Tensor, strengths: Tensor, *values: Tensor) -> Tensor:
        weight, bias, project = values
        return (strengths * (h @ weight.T + bias)) @ project

    def _rescale(self, strengths: Tensor) -> None:
        self.learned_source.weight.mul_(strengths[:, None])
        self.learned_source.bias.mul_(strengths)
