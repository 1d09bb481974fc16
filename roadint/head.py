"""The language-model head only where it is needed, and its loss without a float32 copy of all logits.

A vocabulary of 262,144 makes the head dearer than the layers. Selecting the tokens in front of it, by a hook on the model's own
head, leaves everything that the model does with its logits (soft-caps, scales) to the model.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from roadint.errors import RoadError

_CHUNK = 1 << 23  # numbers in a float32 piece of the logits: 32 MB


@contextmanager
def logits_only_at(model: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Inside, in this thread, the model's logits are [tokens, vocabulary]: those of the tokens (rows[i], columns[i]).

    Raises RoadError where the model has no head that transformers knows.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise RoadError(f"{type(model).__name__} has no language-model head: expected a causal language model")
    thread = threading.get_ident()

    def select(module: nn.Module, args: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        return (args[0][rows, columns], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of each token in nats, [tokens] float32, from logits [tokens, vocabulary] in any dtype."""
    nll: Tensor = _TokenNLL.apply(logits, labels)  # type: ignore[no-untyped-call]
    return nll


class _TokenNLL(torch.autograd.Function):
    """Cross-entropy in float32, a few tokens at a time; keeps the gradient, in the dtype of the logits, instead of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        nll = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        chunk = max(1, _CHUNK // logits.shape[-1])
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            log_p = logits[part].float().log_softmax(dim=-1)
            target = labels[part, None]
            nll[part] = -log_p.gather(1, target)[:, 0]
            if gradient is not None:
                gradient[part] = log_p.exp_().scatter_add_(1, target, log_p.new_full(target.shape, -1.0))
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0][:, None].to(gradient.dtype), None
