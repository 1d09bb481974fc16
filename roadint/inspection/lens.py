"""What a composition does to the next token, and the logit lens on every layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from roadint.architecture.layers import decoder_of, text_config
from roadint.data.prompts import Template, batch_prompts, check_template
from roadint.engines.transformers.scoring import logits_of_states
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import Composition, CompositionLike
from roadint.inspection.states import last_logits_alone
from roadint.model.road_model import RoadModel

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


class Token(NamedTuple):
    """A token that may come next: its text and its probability."""

    text: str
    probability: float


class MovedToken(NamedTuple):
    """A token whose probability changes: its text, the probability before and after."""

    text: str
    before: float
    after: float


@dataclass(frozen=True)
class NextToken:
    """How a composition moves the distribution of the token after a prompt.

    Attributes:
        composition: The composition's text.
        top: The likeliest tokens.
        kl: The divergence from the base model's distribution, in nats.
        moved: The tokens whose probability rises the most, then those whose probability falls the
            most.
    """

    composition: str
    top: list[Token]
    kl: float
    moved: list[MovedToken]


def next_tokens(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    compositions: Sequence[CompositionLike],
    *,
    count: int = 8,
    template: Template | None = None,
) -> list[NextToken]:
    """The distribution of the token after a prompt, beside the base model's, in one batch.

    Args:
        road: The model.
        tokenizer: The model's.
        prompt: An instruction.
        compositions: One composition, or a list.
        count: How many likeliest tokens to return, and how many moved ones.
        template: The template of the prompt; the model's by default.

    Returns:
        One entry a composition, in order.

    Raises:
        RoadError: where `count`, a composition or the prompt is not understood.
    """
    listed = _listed(compositions)
    most = int(text_config(road.model).vocab_size)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
        raise RoadError(
            f"count={quoted(count)}: expected how many tokens to tell, from 1 to {most}"
        )
    inputs = _repeated(road, tokenizer, prompt, 1 + len(listed), template)
    with torch.no_grad():
        output = road(compose=[None, *listed], **inputs, **last_logits_alone(road.model))
    base, *edited = output.logits[:, -1].float().log_softmax(-1).cpu()  # the host reads much of it
    names = [str(Composition.parse(composition, road.names)) for composition in listed]
    return [
        _next_token(tokenizer, name, base, logs, count)
        for name, logs in zip(names, edited, strict=True)
    ]


def _next_token(
    tokenizer: PreTrainedTokenizerBase,
    composition: str,
    base: Float[Tensor, " vocabulary"],
    edited: Float[Tensor, " vocabulary"],
    count: int,
) -> NextToken:
    """`base` and `edited` are logarithms of probabilities."""
    before, after = base.exp(), edited.exp()
    risen = (after - before).topk(count // 2).indices.tolist()
    fallen = (before - after).topk(count // 2).indices.tolist()
    return NextToken(
        composition,
        top=[
            Token(_text(tokenizer, index), float(after[index]))
            for index in edited.topk(count).indices.tolist()
        ],
        kl=float((after * (edited - base)).sum().clamp(min=0)),
        moved=[
            MovedToken(_text(tokenizer, index), float(before[index]), float(after[index]))
            for index in (*risen, *fallen)
        ],
    )


def _text(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    return str(tokenizer.decode([index]))


def logit_lens(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    compositions: Sequence[CompositionLike],
    *,
    template: Template | None = None,
) -> list[list[Token]]:
    """The next token by the output of every layer (the logit lens, nostalgebraist 2020).

    A layer's output goes through the model's final norm and head.

    Args:
        road: The model.
        tokenizer: The model's.
        prompt: An instruction.
        compositions: One composition, or a list.
        template: The template of the prompt; the model's by default.

    Returns:
        For each composition, the likeliest token after every layer.

    Raises:
        RoadError: where the model has no final norm, or a composition or the prompt is not
            understood.
    """
    listed = _listed(compositions)
    norm = _final_norm(road.model)
    inputs = _repeated(road, tokenizer, prompt, len(listed), template)
    with torch.no_grad():
        _, *states, last = road(
            compose=listed, **inputs, output_hidden_states=True, **last_logits_alone(road.model)
        ).hidden_states
        # The last state has been through the norm already.
        normed = [*(norm(state[:, -1]) for state in states), last[:, -1]]
        by_layer = torch.cat([state.to(last.device) for state in normed])
        logits = logits_of_states(road.model, by_layer).float()
        logits = logits.view(len(normed), len(listed), -1)
        probabilities, tokens = (each.tolist() for each in logits.softmax(-1).max(-1))
    return [
        [
            Token(_text(tokenizer, of_rows[row]), probabilities_of_rows[row])
            for of_rows, probabilities_of_rows in zip(tokens, probabilities, strict=True)
        ]
        for row in range(len(listed))
    ]


def _listed(compositions: Any) -> list[CompositionLike]:
    listed = list(compositions) if isinstance(compositions, (list, tuple)) else [compositions]
    if not listed:
        raise RoadError("no compositions given: expected at least one, such as ['german']")
    return listed


def _repeated(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    rows: int,
    template: Template | None,
) -> dict[str, Tensor]:
    """A batch with a number of rows, all with the same prompt."""
    checked = check_template(template or road.template, tokenizer)
    batch = batch_prompts(tokenizer, checked, [prompt] * rows)
    return {name: value.to(road.device) for name, value in batch.items()}


def _final_norm(model: nn.Module) -> nn.Module:
    _, backbone = decoder_of(model)
    for name in _NORMS:
        norm = getattr(backbone, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise RoadError(
        f"{type(model).__name__} has no final norm that is known: "
        "the logit lens needs one before the head"
    )
