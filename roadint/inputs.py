"""What a model's forward is called with: tokens of prompts, and which of its tokens are no padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from roadint.errors import RoadError
from roadint.layers import cached_columns
from roadint.prompt import Template, batch_prompts, check_template

Prompts = str | Sequence[str] | Mapping[str, Tensor]  # instructions, or the model's own inputs


def tokens_of(tokenizer: Any, prompts: Prompts, template: Template, device: torch.device) -> dict[str, Tensor]:
    """The model's inputs for prompts, padded on the left; a mapping of inputs as it is. Raises RoadError where there is none."""
    if isinstance(prompts, Mapping):
        return dict(prompts)
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise RoadError("no prompts given: expected at least one")
    batch = batch_prompts(tokenizer, check_template(template, tokenizer), listed)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def shape_of(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """(rows, columns) of the tokens. Raises RoadError where there are none."""
    for name in ("input_ids", "inputs_embeds", "inputs"):
        if inputs.get(name) is not None:
            return int(inputs[name].shape[0]), int(inputs[name].shape[1])
    raise RoadError("no input given: expected input_ids=… or inputs_embeds=…")


def kept_tokens(inputs: dict[str, Any], takes_positions: bool, device: torch.device) -> Tensor:
    """[rows, columns with those in the cache]: which tokens are no padding. Adds position_ids where the model takes them.

    Raises RoadError for an attention_mask that does not fit.
    """
    rows, columns = shape_of(inputs)
    kept: Tensor | None = inputs.get("attention_mask")
    if kept is None:
        return torch.ones(rows, cached_columns(inputs) + columns, dtype=torch.long, device=device)
    if kept.ndim != 2 or kept.shape[0] != rows:
        raise RoadError(f"attention_mask of shape {tuple(kept.shape)} for {rows} rows: expected [rows, columns]")
    if takes_positions and inputs.get("position_ids") is None:
        # Without them, models with learned positions would count padding.
        inputs["position_ids"] = (kept.long().cumsum(1) - 1).clamp(min=0)[:, -columns:]
    return kept
