"""The hidden states of texts, one token of each, after every layer."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from roadint.architecture.layers import inner_model
from roadint.data.collate import Example, by_length, check_fits
from roadint.data.prompts import pad, pad_id
from roadint.errors import RoadError, check_known, quoted
from roadint.model.road_model import RoadModel

Token = Literal["first", "last"]


@torch.no_grad()
def hidden_states(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | Mapping[str, Any]],
    *,
    token: Token = "last",
    batch_size: int = 16,
    **arguments: Any,
) -> Float[Tensor, "layers texts width"]:
    """The hidden state of one token of every text, after every layer.

    Args:
        model: A RoadModel, a transformers model, or a module that is called as one; in evaluation
            mode.
        tokenizer: Its tokenizer.
        texts: Texts, or what a tokenizer made of them ("input_ids" and, of pairs,
            "token_type_ids").
        token: "last", which has read the whole text where a model reads from the left; or "first",
            which encoders classify by.
        batch_size: The texts of a batch, which have similar lengths.
        **arguments: Further arguments of the model's call, such as compose="german".

    Returns:
        In float32, on the CPU, in the order of the texts. Where a model ends in a norm, the last
        layer's have been through it, as transformers returns them.

    Raises:
        RoadError: where there is no text, a text has no tokens or more than the model has
            positions, or `token` is unknown.
    """
    check_known("token", token, get_args(Token))
    rows = [_tokens(tokenizer, text) for text in texts]
    if not rows:
        raise RoadError("no texts given: expected at least one")
    examples = [Example(row["input_ids"], [], None) for row in rows]
    check_fits(examples, _transformers_model(model), pad_id(tokenizer))
    batches = by_length([len(row["input_ids"]) for row in rows], batch_size)
    arguments = {**last_logits_alone(model), **arguments}
    found = []
    for batch in batches:
        chosen = [rows[index] for index in batch]
        inputs = _padded(chosen, pad_id(tokenizer))
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        states = model(**inputs, output_hidden_states=True, **arguments).hidden_states[1:]
        lengths = inputs["attention_mask"].sum(dim=1)
        index = torch.zeros_like(lengths) if token == "first" else lengths - 1
        every = torch.arange(len(batch), device=index.device)
        found.append(torch.stack([state[every, index].float().cpu() for state in states]))
    order = torch.tensor([index for batch in batches for index in batch])
    return torch.cat(found, dim=1)[:, order.argsort()]


def last_logits_alone(model: nn.Module) -> dict[str, int]:
    """The argument that runs a model's head on the last token alone, where the model has it."""
    parameters = dict(inspect.signature(model.forward).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        # Wrappers hand on what they don't name.
        parameters |= inspect.signature(inner_model(model).forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}


def _transformers_model(model: Any) -> Any:
    """The model itself, or what a RoadModel or a system of `roadint bench learn` wraps."""
    wraps = isinstance(model, RoadModel) or not hasattr(model, "get_input_embeddings")
    return model.model if wraps else model


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str | Mapping[str, Any]) -> Mapping[str, Any]:
    row = tokenizer(text) if isinstance(text, str) else text
    if not row["input_ids"]:
        raise RoadError(f"text {quoted(text)} has no tokens: expected some text")
    return row


def _padded(rows: Sequence[Mapping[str, Any]], fill: int) -> dict[str, Tensor]:
    """A batch, filled up on the right, where no model counts it as a position before a token."""
    batch = {
        "input_ids": pad([row["input_ids"] for row in rows], fill, "right"),
        "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0, "right"),
    }
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0, "right")
    return batch
