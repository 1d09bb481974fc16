"""Parts of a model's own forward pass: up to the output of a layer, or from there on.

Both go through the model's public forward, so that masks, positions, caches and heads stay the model's business; only the layers
that are not wanted do nothing, in a view of the model (roadint.engines.transformers.view) that nobody else sees.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roadint.architecture.layers import find_layers
from roadint.engines.transformers.view import view


class Enough(Exception):
    """Raised inside a forward pass to end it: what was wanted is there."""


def run_until_enough(model: nn.Module, **inputs: Any) -> None:
    """The model's forward without gradients, ended by `Enough` or by itself; its own output is dropped."""
    with torch.no_grad(), suppress(Enough):
        model(**inputs, use_cache=False)


def output_after(model: nn.Module, layers: int, **inputs: Any) -> Any:
    """What the topmost of the lowest `layers` layers (1 or more) returns; no layer above it runs.

    That is the hidden states [rows, columns, width] or, in some architectures, a tuple that begins with them.
    """
    found: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)
        raise Enough

    run_until_enough(view(model, {find_layers(model)[1][layers - 1]: [keep]}), **inputs)
    return found[0]


@dataclass(frozen=True)
class Resumed:
    """A forward pass that begins above the lowest `layers` layers, which do no work: the next one gets `hidden`.

    hidden: [rows, columns, width]; without it, the embeddings pass. as_tuple: whether this model's layers return tuples.
    """

    layers: int
    hidden: Tensor | None
    as_tuple: bool = False

    def of(self, model: nn.Module) -> nn.Module:
        """The model that runs so. The call's input_ids (or inputs_embeds) say rows and columns.

        Hooks on the skipped layers still run: the output of the last of them is `hidden`, as if it had been computed. With
        `layers` 0 it is the model itself.
        """
        skipped = find_layers(model)[1][: self.layers]
        return (
            view(
                model,
                {},
                forwards={layer: self._forward(layer is skipped[-1]) for layer in skipped},
            )
            if self.layers
            else model
        )

    def _forward(self, last: bool) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = hidden_states if self.hidden is None or not last else self.hidden
            return (output, None) if self.as_tuple else output

        return forward
