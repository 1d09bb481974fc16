"""Parts of a model's own forward pass: up to the output of a layer, or from there on.

Both run the model's public forward, so that masks, positions, caches and heads are the model's own.
The layers that are not wanted do nothing, in a view of the model
(roadint.engines.transformers.view) that no other call sees.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from roadint.architecture.layers import find_layers
from roadint.engines.transformers.view import Forward, view


class Enough(Exception):
    """Ends a forward pass from inside, once it has computed what is wanted."""


def run_until_enough(model: nn.Module, **inputs: Any) -> None:
    """Run the model's forward without gradients, until a hook raises `Enough`; drop its output."""
    with torch.no_grad(), suppress(Enough):
        model(**inputs, use_cache=False)


def output_after(model: nn.Module, layers: int, **inputs: Any) -> Any:
    """Run the lowest `layers` layers (1 or more) and return the output of the last of them.

    Returns:
        The hidden states [rows, columns, width] or, in some architectures, a tuple that begins with
        them.
    """
    outputs: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output)
        raise Enough

    run_until_enough(view(model, {find_layers(model)[1][layers - 1]: [keep]}), **inputs)
    return outputs[0]


@dataclass(frozen=True)
class Resumed:
    """A forward pass that begins above the lowest layers, which do nothing.

    Args:
        layers: How many of the lowest layers do nothing.
        hidden: The hidden states that the next layer gets; the embeddings, where it is None.
        as_tuple: Whether the model's layers return tuples.
        forwards: What layers above run in the place of their own forward, which must give the same.
    """

    layers: int
    hidden: Float[Tensor, "rows columns width"] | None
    as_tuple: bool = False
    forwards: Mapping[nn.Module, Forward] = field(default_factory=dict)

    def of(self, model: nn.Module) -> nn.Module:
        """A view of the model that runs so; its input_ids or inputs_embeds give rows and columns.

        Hooks on the skipped layers still run, on `hidden` as the output of the last of them. Where
        nothing differs, the model itself is returned.
        """
        if not self.layers and not self.forwards:
            return model
        skipped = find_layers(model)[1][: self.layers]
        idle = {layer: self._forward(layer is skipped[-1]) for layer in skipped}
        return view(model, {}, forwards={**self.forwards, **idle})

    def _forward(self, is_last: bool) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if is_last and self.hidden is not None:
                hidden_states = self.hidden
            return (hidden_states, None) if self.as_tuple else hidden_states

        return forward
