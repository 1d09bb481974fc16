"""Parts of a model's own forward pass: up to the output of a layer, or from there on.

Both go through the model's public forward, so that masks, positions, caches and heads stay the model's business; only the layers
that are not wanted do nothing. What is changed on the model is undone afterwards, and other threads never see it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from roadint.layers import find_layers


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
    thread = threading.get_ident()

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            found.append(output)
            raise Enough

    handle = find_layers(model)[1][layers - 1].register_forward_hook(keep)
    try:
        run_until_enough(model, **inputs)
    finally:
        handle.remove()
    return found[0]


@contextmanager
def resumed(model: nn.Module, layers: int, hidden: Tensor | None, *, as_tuple: bool = False) -> Iterator[None]:
    """Inside, in this thread, the lowest `layers` layers do no work; the next one gets `hidden` [rows, columns, width].

    Hooks on the skipped layers still run: the output of the last of them is `hidden`, as if it had been computed (without
    `hidden`, the embeddings pass). The call's input_ids (or inputs_embeds) say rows and columns. With `layers` 0 the model
    runs as it is. as_tuple: whether this model's layers return tuples.
    """
    thread = threading.get_ident()

    def instead(own: Callable[..., Any], last: bool) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return own(hidden_states, *args, **kwargs)
            output = hidden_states if hidden is None or not last else hidden
            return (output, None) if as_tuple else output

        return forward

    with ExitStack() as undo:
        for index, layer in enumerate(find_layers(model)[1][:layers]):
            undo.callback(_put_back, layer, vars(layer).get("forward"))
            layer.forward = instead(layer.forward, last=index == layers - 1)
        yield


def _put_back(layer: nn.Module, forward: Any) -> None:
    """A forward of the layer's own (accelerate sets such), or none."""
    del layer.forward
    if forward is not None:
        layer.forward = forward
