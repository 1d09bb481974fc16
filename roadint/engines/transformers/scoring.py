"""The negative log-likelihood of some tokens, without holding the logits of all of them.

A vocabulary of 262,144 makes the head cost more than the layers. Here the head runs on the scored
tokens only, a piece at a time, and a piece of logits and its gradient are freed before the next.
The model's own forward computes the logits (with soft caps and scales), in a view in which the
layers do nothing.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadint.architecture.layers import find_layers, inner_model, text_config
from roadint.architecture.properties import input_device, positions_of
from roadint.engines.transformers.partial import Enough, Resumed
from roadint.engines.transformers.view import view
from roadint.errors import RoadError

_LOGITS = 5 << 23  # numbers in a piece of logits: 160 tokens of 262,144, 84 MB in bfloat16
_FLOATS = 1 << 20  # of these in float32 at a time: 4 MB, which stay in the processor's cache


def score(
    model: nn.Module,
    inputs: dict[str, Any],
    where: Int[Tensor, "2 tokens"],
    labels: Int[Tensor, " tokens"],
    *,
    plain: nn.Module,
) -> Float[Tensor, " tokens"]:
    """The negative log-likelihood, in nats, of labels as the tokens after those at `where`.

    Args:
        model: The model with the edits of the call.
        inputs: The arguments of its forward.
        where: Rows and columns.
        labels: Token ids.
        plain: The model without edits.

    Raises:
        RoadError: where the model has no head.
    """
    rows, columns = where
    if _head(model) is not _head(plain):  # the edits are in the head too
        logits = model(**inputs).logits[rows, columns]
        return cross_entropy(logits.float(), labels, reduction="none")
    hidden, as_tuple = _input_of_head(model, inputs)
    # The head may run on another device than the one that takes the inputs.
    rows, columns, wanted = (tensor.to(hidden.device) for tensor in (rows, columns, labels))
    # By one index: by two, the gradient would sort the tokens first.
    scored = hidden.flatten(0, 1).index_select(0, rows * hidden.shape[1] + columns)
    logits_of = _logits_of(plain, as_tuple)
    if torch.is_grad_enabled() and any(p.requires_grad for p in _head(plain).parameters()):
        nll = cross_entropy(logits_of(scored).float(), wanted, reduction="none")
        return nll.to(labels.device)
    pieces = -(-len(labels) * int(text_config(plain).vocab_size) // _LOGITS)
    pieces = min(len(labels), pieces)
    in_pieces: Tensor = _PiecewiseNLL.apply(scored, wanted, pieces, logits_of)  # type: ignore[no-untyped-call]
    return in_pieces.to(labels.device)


class _PiecewiseNLL(torch.autograd.Function):
    """Cross-entropy in float32, in pieces; the forward computes the hidden states' gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        labels: Tensor,
        pieces: int,
        logits_of: Callable[[Tensor], Tensor],
    ) -> Tensor:
        learning = ctx.needs_input_grad[0]
        nll, gradients = [], []
        parts = zip(hidden.detach().tensor_split(pieces), labels.tensor_split(pieces), strict=True)
        for part, targets in parts:
            with torch.set_grad_enabled(learning):
                logits = logits_of(part.requires_grad_(learning))
            losses, gradient = _cross_entropy(logits.detach(), targets, learning)
            nll.append(losses)
            if gradient is not None:
                gradients.append(torch.autograd.grad(logits, part, gradient)[0])
        if learning:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(nll)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0][:, None].to(gradient.dtype), None, None, None


def _cross_entropy(
    logits: Tensor, labels: Tensor, learning: bool
) -> tuple[Float[Tensor, " tokens"], Tensor | None]:
    """The losses and, where `learning`, their gradient, in the dtype of the logits."""
    nll = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
    gradient = torch.empty_like(logits) if learning else None
    numbers = _FLOATS if logits.device.type == "cpu" else _LOGITS
    rows = max(1, numbers // logits.shape[-1])
    # One buffer for all parts: allocating costs as much as the work.
    buffer = torch.empty(rows, logits.shape[-1], dtype=torch.float32, device=logits.device)
    for start in range(0, len(labels), rows):
        part, target = logits[start : start + rows], labels[start : start + rows, None]
        shifted = buffer[: len(part)].copy_(part)
        shifted.sub_(shifted.amax(dim=-1, keepdim=True))
        of_label = shifted.gather(1, target)
        total = shifted.exp_().sum(dim=-1, keepdim=True)
        nll[start : start + rows] = (total.log() - of_label)[:, 0]
        if gradient is not None:
            unscaled = shifted.scatter_add_(1, target, -total)
            torch.mul(unscaled, 1 / total, out=gradient[start : start + rows])
    return nll, gradient


def _head(model: nn.Module) -> nn.Module:
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise RoadError(
            f"{type(model).__name__} has no language-model head: expected a causal language model"
        )
    return head


def _input_of_head(
    model: nn.Module, inputs: dict[str, Any]
) -> tuple[Float[Tensor, "rows columns width"], bool]:
    """The head's input, without running the head; and whether the layers return tuples."""
    states: list[Tensor] = []
    tuples: list[bool] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        tuples.append(isinstance(output, tuple))

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        states.append(args[0])
        raise Enough

    looking = view(model, {find_layers(model)[1][0]: [look]}, {_head(model): [stop]})
    with suppress(Enough):
        looking(**inputs)
    return states[0], tuples[0]


def logits_of_states(
    model: nn.Module, states: Float[Tensor, "tokens width"]
) -> Float[Tensor, "tokens vocabulary"]:
    """The model's own logits, with its soft caps and scales, of states that have passed its norm.

    Args:
        model: The model.
        states: What its head gets.

    Raises:
        RoadError: where the model has no head.
    """
    one = torch.zeros(1, 1, dtype=torch.long, device=input_device(model))
    _, as_tuple = _input_of_head(model, {"input_ids": one, "use_cache": False})
    return _logits_of(model, as_tuple)(states)


def _logits_of(model: nn.Module, as_tuple: bool) -> Callable[[Tensor], Tensor]:
    """The model's own logits [tokens, vocabulary] as a function of the head's input.

    In a view, made once for all pieces, whose body gives what the head is to get: embeddings and
    masks would be computed for nothing, and transformers reads masks on the host. A model that
    wants more of its body than hidden states runs with its body, whose layers do nothing.
    """
    positions = positions_of(model)
    given: list[Tensor] = []  # what the head gets next

    def replace(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return (given[-1], *args[1:]), kwargs

    def body(*args: Any, **kwargs: Any) -> Any:
        return _BodyOutput((given[-1],))

    base: Any = inner_model(model)
    base = getattr(base, "base_model", base)  # with the other towers of a multimodal model
    running = view(model, {}, {_head(model): [replace]}, forwards={base: body})
    headless = Resumed(int(text_config(model).num_hidden_layers), None, as_tuple)

    def logits_of(hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocabulary"]:
        nonlocal running
        # One row; or a row for every token, where the model has too few positions.
        fits = positions is None or len(hidden) <= positions
        given[:] = [hidden[None] if fits else hidden[:, None]]
        ids = torch.zeros(given[0].shape[:2], dtype=torch.long, device=hidden.device)
        try:
            logits: Tensor = running(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        except (AttributeError, LookupError, TypeError, ValueError):
            idle = headless.of(model)
            running = view(idle, {}, {_head(idle): [replace]})
            logits = running(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        given.clear()
        return logits

    return logits_of


class _BodyOutput(tuple[Any, ...]):
    """The hidden states as the output of a model's body, which has nothing else."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None
