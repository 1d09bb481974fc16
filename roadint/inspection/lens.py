"""What a composition does to the next token, and to what each layer would say: distributions before and after, side by side."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roadint.architecture.layers import text_config
from roadint.data.prompts import Template, batch_prompts, check_template
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import Composition, CompositionLike
from roadint.model.road_model import RoadModel

Token = tuple[str, float]  # its text and its probability


@dataclass(frozen=True)
class NextToken:
    """How a composition moves the distribution after a prompt. top: its likeliest tokens. kl: nats, from the base model's.

    moved: the tokens whose probability rose, and fell, the most: (text, before, after).
    """

    composition: str
    top: list[Token]
    kl: float
    moved: list[tuple[str, float, float]]


def next_tokens(
    road: RoadModel,
    tokenizer: Any,
    prompt: str,
    compositions: Sequence[CompositionLike],
    *,
    count: int = 8,
    template: Template | None = None,
) -> list[NextToken]:
    """The distribution of the token after a prompt, in one batch with the base model's; one entry a composition, in order.

    Raises RoadError for bad input.
    """
    compositions = _listed(compositions)
    most = int(text_config(road.model).vocab_size)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
        raise RoadError(
            f"count={quoted(count)}: expected how many tokens to tell, from 1 to {most}"
        )
    inputs = _repeated(road, tokenizer, prompt, 1 + len(compositions), template)
    with torch.no_grad():
        logits = (
            road(compose=[None, *compositions], **inputs, **_last_alone(road.model))
            .logits[:, -1]
            .float()
        )
    logs = logits.log_softmax(-1)
    base, found = logs[0], []
    for composition, own in zip(compositions, logs[1:], strict=True):
        change = own.exp() - base.exp()
        places = [
            *change.topk(count // 2).indices.tolist(),
            *(-change).topk(count // 2).indices.tolist(),
        ]
        found.append(
            NextToken(
                str(Composition.parse(composition, road.names)),
                [
                    (tokenizer.decode([place]), float(own[place].exp()))
                    for place in own.topk(count).indices.tolist()
                ],
                float((own.exp() * (own - base)).sum().clamp(min=0)),
                [
                    (tokenizer.decode([place]), float(base[place].exp()), float(own[place].exp()))
                    for place in places
                ],
            )
        )
    return found


def logit_lens(
    road: RoadModel,
    tokenizer: Any,
    prompt: str,
    compositions: Sequence[CompositionLike],
    *,
    template: Template | None = None,
) -> list[list[Token]]:
    """What every layer's output would say next: for each composition, the likeliest token after each layer, the last one included.

    Layers' outputs go through the model's own final norm and head (nostalgebraist 2020). Raises RoadError where a model has none.
    """
    compositions = _listed(compositions)
    norm, head = _final_norm(road.model), road.model.get_output_embeddings()  # type: ignore[operator]
    inputs = _repeated(road, tokenizer, prompt, len(compositions), template)
    with torch.no_grad():
        states = road(
            compose=list(compositions),
            **inputs,
            output_hidden_states=True,
            **_last_alone(road.model),
        ).hidden_states
        # The last state has been through the norm already.
        normed = [norm(each[:, -1]) for each in states[1:-1]] + [states[-1][:, -1]]
        rows = [_capped(road.model, head(each)).float().softmax(-1).max(-1) for each in normed]
    return [
        [(tokenizer.decode([int(layer.indices[row])]), float(layer.values[row])) for layer in rows]
        for row in range(len(compositions))
    ]


def _listed(compositions: Any) -> list[CompositionLike]:
    """One composition, or several, as a list. Raises RoadError where there is none."""
    listed = list(compositions) if isinstance(compositions, (list, tuple)) else [compositions]
    if not listed:
        raise RoadError("no compositions given: expected at least one, such as ['german']")
    return listed


def _repeated(
    road: RoadModel, tokenizer: Any, prompt: str, rows: int, template: Template | None
) -> dict[str, Tensor]:
    batch = batch_prompts(
        tokenizer, check_template(template or road.template, tokenizer), [prompt] * rows
    )
    return {name: value.to(road.device) for name, value in batch.items()}


def _last_alone(model: Any) -> dict[str, int]:
    """So that the head runs on the last token alone, where the model can."""
    return (
        {"logits_to_keep": 1}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )


def _final_norm(model: nn.Module) -> nn.Module:
    backbone = getattr(model, "base_model", model)
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        found = getattr(backbone, name, None)
        if isinstance(found, nn.Module):
            return found
    raise RoadError(
        f"{type(model).__name__} has no final norm that is known: the logit lens needs one before the head"
    )


def _capped(model: nn.Module, logits: Tensor) -> Tensor:
    cap = getattr(text_config(model), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
