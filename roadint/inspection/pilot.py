"""The paper's pilot studies (section 3.1): what finetuning changes in hidden states, and what a classifier needs of them."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear

from roadint.errors import check_known

Reads = Literal["both", "magnitude", "angle"]


def magnitude_change(before: Tensor, after: Tensor) -> Tensor:
    """ΔM = | ‖x‖ − ‖x0‖ | / ‖x0‖ of hidden states [..., width] → [...]."""
    length = before.norm(dim=-1)
    change: Tensor = (after.norm(dim=-1) - length).abs() / length
    return change


def direction_change(before: Tensor, after: Tensor) -> Tensor:
    """ΔD = cos(x, x0) of hidden states [..., width] → [...]; 1 where the direction is the same."""
    return cosine_similarity(before, after, dim=-1)


class PilotClassifier(nn.Module):
    """The second study's classifier of frozen hidden states: a layer that sees them whole, their size or their angle alone.

    reads: "both" is Wᵀx, "magnitude" ‖W_i‖·‖x‖ and "angle" cos(W_i, x); then tanh, dropout and the output layer.
    Raises RoadError for another one.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        reads: Reads,
        hidden: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        first: dict[str, Callable[[Tensor], Tensor]] = {
            "both": lambda x: linear(x, self.weight),
            "magnitude": lambda x: x.norm(dim=-1, keepdim=True) * self.weight.norm(dim=-1),
            "angle": lambda x: cosine_similarity(x[..., None, :], self.weight, dim=-1),
        }
        check_known("reads", reads, first)
        self.weight = nn.Parameter(torch.randn(hidden or width, width) / width**0.5)
        self._first = first[reads]
        self.rest = nn.Sequential(
            nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden or width, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, width] → [rows, classes]."""
        logits: Tensor = self.rest(self._first(x))
        return logits
