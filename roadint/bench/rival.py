"""The rival: RoAd as a pyvene user writes it, and pyreft's training step around it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from roadint.data.collate import Example
from roadint.data.prompts import pad
from roadint.interop.pyvene import register
from roadint.interventions.pyvene.patches import (
    DistributedRepresentationIntervention,
    SourcelessIntervention,
    TrainableIntervention,
    pyvene,
)


class PlainRoad(
    SourcelessIntervention, TrainableIntervention, DistributedRepresentationIntervention
):
    """RoAd1 on adjacent pairs with a mask of blocks a row (paper equation 4), straight from the formula."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, keep_last_dim=True)
        blocks = int(self.embed_dim) // 2
        self.theta = nn.Parameter(torch.zeros(blocks))
        self.alpha = nn.Parameter(torch.ones(blocks))

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None) -> Tensor:
        """base: [rows, positions, width]; subspaces: for each row the strengths of its blocks, 0 where one does not act."""
        del source
        strengths = torch.stack(list(subspaces)).to(base.device)
        theta, alpha = strengths * self.theta, self.alpha**strengths
        cosine = (alpha * theta.cos()).repeat_interleave(2, dim=-1)[:, None]
        sine = (alpha * theta.sin()).repeat_interleave(2, dim=-1)[:, None]
        turned = torch.stack([-base[..., 1::2], base[..., ::2]], dim=-1).flatten(-2)
        return (cosine * base + sine * turned).to(base.dtype)


def wrapped(model: nn.Module, layer: int, width: int) -> tuple[Any, PlainRoad]:
    """The model in pyvene, with one PlainRoad at the output of a layer."""
    register(model)
    intervention = PlainRoad(embed_dim=width)
    config = pyvene.IntervenableConfig(
        [{"layer": layer, "component": "block_output", "intervention": intervention}]
    )
    intervenable = pyvene.IntervenableModel(config, model)
    intervenable.disable_model_gradients()
    return intervenable, intervention


def batch(examples: Sequence[Example], fill: int, device: torch.device) -> dict[str, Tensor]:
    """Whole rows, padded to the longest, with labels as the model's own loss takes them."""
    tensors = {
        "input_ids": pad([[*e.prompt, *e.completion] for e in examples], fill, "right"),
        "attention_mask": pad([[1] * len(e) for e in examples], 0, "right"),
        "labels": pad([[-100] * len(e.prompt) + e.completion for e in examples], -100, "right"),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def loss(
    intervenable: Any,
    examples: Sequence[Example],
    strengths: Sequence[Tensor],
    inputs: dict[str, Tensor],
) -> Tensor:
    """pyreft's step: the rows of `batch` through pyvene, the model's own loss over all logits. strengths: [blocks] a row."""
    labels = inputs.pop("labels")
    _, output = intervenable(
        inputs,
        unit_locations={"sources->base": (None, [[[len(e.prompt) - 1] for e in examples]])},
        labels=labels,
        subspaces=[list(strengths)],
    )
    result: Tensor = output.loss
    return result
