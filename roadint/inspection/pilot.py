"""The paper's pilot studies of hidden states (section 3.1): what finetuning and classifiers use."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear, normalize

from roadint.errors import check_known

Reads = Literal["both", "magnitude", "angle"]


def magnitude_change(
    before: Float[Tensor, "*states width"], after: Float[Tensor, "*states width"]
) -> Float[Tensor, "*states"]:
    """ΔM = | ‖x‖ − ‖x0‖ | / ‖x0‖: how much the size of hidden states changes.

    Args:
        before: x0.
        after: x.

    Examples:
        >>> magnitude_change(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 10.0]])).tolist()
        [1.0]
    """
    length = before.norm(dim=-1)
    change: Tensor = (after.norm(dim=-1) - length).abs() / length
    return change


def direction_change(
    before: Float[Tensor, "*states width"], after: Float[Tensor, "*states width"]
) -> Float[Tensor, "*states"]:
    """ΔD = cos(x, x0): how much the direction of hidden states changes; 1 where it is the same.

    Args:
        before: x0.
        after: x.

    Examples:
        >>> direction_change(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).tolist()
        [0.0]
    """
    return cosine_similarity(before, after, dim=-1)


class PilotClassifier(nn.Module):
    """The classifier of frozen hidden states in the second study.

    Its first layer reads hidden states whole, or only their magnitude or angle; then come tanh,
    dropout and the output layer.

    Args:
        width: The width of the hidden states.
        classes: The number of classes.
        reads: "both" is Wᵀx, "magnitude" ‖W_i‖·‖x‖ and "angle" cos(W_i, x).
        hidden: The width of the first layer's output; that of the hidden states by default.
        dropout: The probability of dropout.

    Raises:
        RoadError: where `reads` is unknown.
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
            "angle": lambda x: linear(normalize(x, dim=-1), normalize(self.weight, dim=-1)),
        }
        check_known("reads", reads, first)
        self.weight = nn.Parameter(torch.randn(hidden or width, width) / width**0.5)
        self._first = first[reads]
        self.rest = nn.Sequential(
            nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden or width, classes)
        )

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows classes"]:
        """The logits of hidden states."""
        logits: Tensor = self.rest(self._first(x))
        return logits
