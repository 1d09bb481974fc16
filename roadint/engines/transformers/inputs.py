"""What a model's forward is called with: tokens of prompts, and which of its tokens are no padding."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from roadint.architecture.layers import inner_model, text_config
from roadint.architecture.properties import cached_columns
from roadint.data.prompts import (
    Template,
    batch_prompts,
    check_template,
    check_tokenizer,
    listed_prompts,
)
from roadint.errors import RoadError, quoted

Prompts = str | Sequence[str] | Mapping[str, Tensor]  # instructions, or the model's own inputs


def tokens_of(
    tokenizer: Any, prompts: Prompts, template: Template, device: torch.device
) -> dict[str, Tensor]:
    """The model's inputs for prompts, padded on the left; a mapping of inputs as it is. Raises RoadError where there is none."""
    if isinstance(prompts, Mapping):
        return dict(prompts)
    listed = listed_prompts(prompts)
    check_tokenizer(tokenizer)
    batch = batch_prompts(tokenizer, check_template(template, tokenizer), listed)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def with_names(model: nn.Module, args: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model's forward by name, those that came without one too. Raises RoadError."""
    if not args:
        return dict(inputs)
    names = list(inspect.signature(inner_model(model).forward).parameters)
    if len(args) > len(names):
        raise RoadError(
            f"{len(args)} arguments without a name: the model's forward has {len(names)}"
        )
    for name in names[: len(args)]:
        if name in inputs:
            raise RoadError(
                f"{name} is given twice, by its place and by its name: expected it once"
            )
    return {**dict(zip(names, args, strict=False)), **inputs}


def shape_of(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """(rows, columns) of the tokens. Raises RoadError where there are none."""
    for name in ("input_ids", "inputs_embeds", "inputs"):
        given = inputs.get(name)
        if given is None:
            continue
        if not torch.is_tensor(given) or given.ndim < 2:
            raise RoadError(f"{name} is {quoted(given)}: expected a tensor, [rows, columns]")
        return int(given.shape[0]), int(given.shape[1])
    raise RoadError("no input given: expected input_ids=… or inputs_embeds=…")


def kept_tokens(inputs: Mapping[str, Any], model: nn.Module, device: torch.device) -> Tensor:
    """[rows, columns with those in the cache]: which tokens are no padding.

    Raises RoadError for an attention_mask that does not fit, and for padded ids without one.
    """
    rows, columns = shape_of(inputs)
    cached = cached_columns(inputs)
    kept = inputs.get("attention_mask")
    if kept is None:
        if cached is None:
            raise RoadError(
                "the cache does not tell how many columns it holds: give attention_mask, [rows, columns with those]"
            )
        if not cached and is_padded(inputs, model):
            raise RoadError(
                "input_ids are padded, and no attention_mask says where: give attention_mask, as the tokenizer does"
            )
        return torch.ones(rows, cached + columns, dtype=torch.long, device=device)
    if not torch.is_tensor(kept) or kept.ndim != 2 or kept.shape[0] != rows:
        shape = tuple(kept.shape) if torch.is_tensor(kept) else type(kept).__name__
        raise RoadError(
            f"attention_mask of shape {shape} for {rows} rows: expected [rows, columns]"
        )
    if kept.shape[1] < columns or (cached is not None and kept.shape[1] != cached + columns):
        held = f"{columns} tokens a row" + (f" and {cached} columns in the cache" if cached else "")
        raise RoadError(
            f"attention_mask has {kept.shape[1]} columns for {held}: expected {columns + (cached or 0)}"
        )
    if kept.device.type == "cpu" and not bool(
        kept.any(1).all()
    ):  # elsewhere it would be waited for
        raise RoadError("attention_mask keeps no token of a row: expected at least one in each")
    return kept


def is_padded(inputs: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether ids without a mask begin or end with padding, where its token means nothing else, as `generate` infers."""
    ids, config = inputs.get("input_ids"), text_config(model)
    if ids is None or ids.ndim != 2 or not ids.shape[1]:
        return False
    pad, *ends = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos", "bos"))
    if pad is None or any(
        pad in (each if isinstance(each, (list, tuple)) else [each]) for each in ends
    ):
        return False
    return bool((ids[:, [0, -1]] == pad).any())


def with_own_positions(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with position_ids that leave out padding on the left, as transformers' generate counts, where a mask shows it."""
    mask = inputs.get("attention_mask")
    if inputs.get("position_ids") is not None or not torch.is_tensor(mask) or mask.ndim != 2:
        return dict(inputs)
    before = (mask.long().cumsum(1) == 0).sum(1, keepdim=True)
    places = torch.arange(mask.shape[1], device=mask.device) - before
    return {**inputs, "position_ids": places.clamp(min=0)[:, -shape_of(inputs)[1] :]}


def check_prompt_length(length: Any, kept: Tensor) -> Tensor | None:
    """Raises RoadError where it is no [rows] of counts of the row's kept tokens."""
    if length is None:
        return None
    if not torch.is_tensor(length) or length.shape != kept.shape[:1] or not _counts(length):
        raise RoadError(
            f"prompt_length {quoted(length)}: expected a tensor [rows] of integers, for {len(kept)} rows"
        )
    if length.device.type == kept.device.type == "cpu":
        most = kept.bool().sum(1)
        if bool(((length < 0) | (length > most)).any()):
            raise RoadError(
                f"prompt_length {length.tolist()[:8]}: expected at most the tokens that the mask keeps, {most.tolist()[:8]}"
            )
    return length


def check_scored(scored: Any, rows: int, columns: int, vocabulary: int) -> None:
    """Raises RoadError where places and labels are not [2, tokens] and [tokens], or outside of the call."""
    if (
        not isinstance(scored, tuple)
        or len(scored) != 2
        or not all(torch.is_tensor(each) for each in scored)
    ):
        raise RoadError("token_nll: expected two tensors, places [2, tokens] and labels [tokens]")
    where, labels = scored
    if where.ndim != 2 or len(where) != 2 or labels.shape != where.shape[1:] or not labels.numel():
        raise RoadError(
            f"token_nll: places {tuple(where.shape)} and labels {tuple(labels.shape)}: expected [2, tokens] and [tokens]"
        )
    if not (_counts(where) and _counts(labels)):
        raise RoadError(
            f"token_nll: places of {where.dtype} and labels of {labels.dtype}: expected integers, as torch.long"
        )
    if where.device.type == labels.device.type == "cpu":  # elsewhere they would be waited for
        for what, values, limit in (
            ("rows", where[0], rows),
            ("columns", where[1], columns),
            ("labels", labels, vocabulary),
        ):
            if int(values.min()) < 0 or int(values.max()) >= limit:
                raise RoadError(
                    f"token_nll: {what} from {int(values.min())} to {int(values.max())}: expected 0 to {limit - 1}"
                )


def _counts(values: Tensor) -> bool:
    """Whether these are integers."""
    return values.dtype in (torch.long, torch.int)
