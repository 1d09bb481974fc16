"""LoReFT with subspaces ("ReFT", arXiv 2404.03592, equation 2): an edit in a low-rank subspace."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from roadint.files.rules import Shapes
from roadint.interventions.additive import AdditiveIntervention
from roadint.interventions.registry import register


@register("loreft")
class LoreftIntervention(AdditiveIntervention):
    """`h + Rᵀ(W h + b − R h)`, whose units are the orthonormal matrix rows of R [rank, width].

    `learned_source` holds W and b, `rotate_layer` Rᵀ, as in pyreft. All matrix rows of R share one
    orthogonal parametrisation: unlike RoAd's blocks, training some of them moves the others.
    """

    @classmethod
    def _shapes(cls, rank: int, width: int) -> Shapes:
        return {
            "learned_source.weight": (rank, width),
            "learned_source.bias": (rank,),
            "rotate_layer.parametrizations.weight.original": (width, rank),
        }

    def _make_parameters(self, width: int) -> None:
        self.learned_source = nn.Linear(width, self.rank, dtype=torch.float32)
        self.rotate_layer = nn.Module()
        self.rotate_layer.weight = nn.Parameter(torch.empty(width, self.rank, dtype=torch.float32))
        nn.init.orthogonal_(self.rotate_layer.weight)
        orthogonal(self.rotate_layer, use_trivialization=False)

    def _current(self) -> tuple[Tensor, ...]:
        rotate: Tensor = self.rotate_layer.weight  # type: ignore[assignment]
        return self.learned_source.weight, self.learned_source.bias, rotate

    def _added(self, h: Tensor, strengths: Tensor, *values: Tensor) -> Tensor:
        weight, bias, rotate = values
        return (strengths * (h @ weight.T + bias - h @ rotate)) @ rotate.T

    def _rescale(self, strengths: Tensor) -> None:
        weight, bias, rotate = self._current()
        weight.copy_(rotate.T + strengths[:, None] * (weight - rotate.T))
        bias.mul_(strengths)
