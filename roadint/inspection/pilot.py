"""The paper's pilot studies of hidden states (section 3.1): what finetuning and classifiers use."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, linear, mse_loss, normalize
from transformers import get_scheduler, set_seed

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


_FIRST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "both": linear,
    "magnitude": lambda x, w: x.norm(dim=-1, keepdim=True) * w.norm(dim=-1),
    "angle": lambda x, w: linear(normalize(x, dim=-1), normalize(w, dim=-1)),
}


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
        check_known("reads", reads, _FIRST)
        self.reads = reads
        self.weight = nn.Parameter(torch.randn(hidden or width, width) / width**0.5)
        self.rest = nn.Sequential(
            nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden or width, classes)
        )

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows classes"]:
        """The logits of hidden states."""
        logits: Tensor = self.rest(_FIRST[self.reads](x, self.weight))
        return logits


def fit_classifier(
    states: Float[Tensor, "rows width"],
    labels: Shaped[Tensor, " rows"],
    reads: Reads,
    *,
    classes: int,
    rate: float,
    epochs: int,
    batch_size: int = 32,
    seed: int = 0,
    after_epoch: Callable[[PilotClassifier], object] | None = None,
) -> PilotClassifier:
    """Train a classifier of frozen states, as the paper finetunes (appendix C.1).

    AdamW without weight decay, a linear schedule with a tenth of warm-up.

    Args:
        states: Hidden states. As they are, ‖W‖·‖x‖ may be so large that tanh hardly changes;
            divided by their mean size, it is around 1.
        labels: The class of every row, or its number, in a dtype of floats, for a regression.
        reads: What the classifier reads; see `PilotClassifier`.
        classes: How many classes; 1 for a regression.
        rate: The learning rate.
        epochs: How often it sees the rows.
        batch_size: The rows of a step.
        seed: The seed of its weights, of dropout and of the order of rows.
        after_epoch: Called with the classifier after every epoch.

    Returns:
        The classifier after the last epoch, in evaluation mode.

    Raises:
        RoadError: where `reads` is unknown.
    """
    set_seed(seed)
    model = PilotClassifier(states.shape[1], classes, reads).to(states.device)
    labels = labels.to(states.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    steps = epochs * -(-len(labels) // batch_size)
    schedule = get_scheduler("linear", optimizer, steps // 10, steps)
    for _ in range(epochs):
        model.train()
        for batch in torch.split(torch.randperm(len(labels)).to(states.device), batch_size):
            logits = model(states[batch])
            if labels.is_floating_point():
                loss = mse_loss(logits[:, 0], labels[batch])
            else:
                loss = cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        if after_epoch is not None:
            after_epoch(model.eval())
    return model.eval()
