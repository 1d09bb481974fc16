"""RoAd as a pyvene user writes it, and pyreft's training step around it."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from roadint.architecture.layers import find_layers
from roadint.data.collate import Example
from roadint.interop.pyvene import register_model
from roadint.interventions.pyvene.patches import (
    DistributedRepresentationIntervention,
    SourcelessIntervention,
    TrainableIntervention,
    pyvene,
)


class PyveneRoad(
    SourcelessIntervention,
    TrainableIntervention,
    DistributedRepresentationIntervention,
):
    """RoAd1 on adjacent pairs with a mask of blocks a row, straight from the paper's equation 4.

    Args:
        **kwargs: Arguments of pyvene's interventions; embed_dim is the width of the hidden states.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, keep_last_dim=True)
        blocks = int(self.embed_dim) // 2
        self.theta = nn.Parameter(torch.zeros(blocks))
        self.alpha = nn.Parameter(torch.ones(blocks))

    def forward(
        self,
        base: Float[Tensor, "rows positions width"],
        source: Tensor | None = None,
        subspaces: Sequence[Float[Tensor, " blocks"]] = (),
    ) -> Float[Tensor, "rows positions width"]:
        """Rotate hidden states.

        Args:
            base: The hidden states.
            source: pyvene's, not used.
            subspaces: For each row the strengths of its blocks, 0 where one does not act.

        Returns:
            The rotated hidden states.
        """
        strengths = torch.stack(list(subspaces)).to(base.device)
        theta, alpha = strengths * self.theta, self.alpha**strengths
        cosine = (alpha * theta.cos()).repeat_interleave(2, dim=-1)[:, None]
        sine = (alpha * theta.sin()).repeat_interleave(2, dim=-1)[:, None]
        turned = torch.stack([-base[..., 1::2], base[..., ::2]], dim=-1).flatten(-2)
        return (cosine * base + sine * turned).to(base.dtype)


def wrap_in_pyvene(model: nn.Module, layer: int, width: int) -> tuple[Any, PyveneRoad]:
    """Put a PyveneRoad at the output of a layer, on the layer's device.

    Args:
        model: The model, whose parameters are frozen.
        layer: From 0.
        width: The width of the hidden states.

    Returns:
        pyvene's IntervenableModel, and the intervention.
    """
    register_model(model)
    at = find_layers(model)[1][layer]
    intervention = PyveneRoad(embed_dim=width).to(next(at.parameters()).device)
    config = pyvene.IntervenableConfig(
        [{"layer": layer, "component": "block_output", "intervention": intervention}]
    )
    intervenable = pyvene.IntervenableModel(config, model)
    intervenable.disable_model_gradients()
    return intervenable, intervention


def pyreft_loss(
    intervenable: Any,
    examples: Sequence[Example],
    strengths: Sequence[Float[Tensor, " blocks"]],
    inputs: dict[str, Tensor],
) -> Float[Tensor, ""]:
    """Compute the loss of pyreft's step: the model's own, over all logits.

    Args:
        intervenable: What `wrap_in_pyvene` returned.
        examples: The rows, edited at their last prompt tokens.
        strengths: The strengths of the blocks, for each row.
        inputs: The rows as `roadint.bench.train_systems.labelled_batch` makes them.

    Returns:
        The mean loss over the completions' tokens, in nats.
    """
    _, output = intervenable(
        {name: value for name, value in inputs.items() if name != "labels"},
        unit_locations={"sources->base": (None, [[[len(e.prompt) - 1] for e in examples]])},
        labels=inputs["labels"],
        subspaces=[list(strengths)],
    )
    result: Tensor = output.loss
    return result
