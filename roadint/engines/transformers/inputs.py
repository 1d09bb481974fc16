"""The inputs of a model's forward: tokens, masks and positions, checked."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from roadint.architecture.layers import inner_model, text_config
from roadint.architecture.properties import cached_columns
from roadint.data.prompts import (
    Template,
    batch_prompts,
    check_template,
    check_tokenizer,
    listed_prompts,
)
from roadint.engines.transformers.generation import setting
from roadint.errors import RoadError, quoted

Prompts = str | Sequence[str] | Mapping[str, Tensor]
"""Instructions, or the model's own inputs."""


def tokens_of(
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Prompts,
    template: Template,
    device: torch.device,
) -> dict[str, Tensor]:
    """The model's inputs for prompts, padded on the left; a mapping of inputs is returned as it is.

    Raises:
        RoadError: where there are no prompts.
    """
    if isinstance(prompts, Mapping):
        return dict(prompts)
    listed = listed_prompts(prompts)
    known = check_tokenizer(tokenizer)
    batch = batch_prompts(known, check_template(template, known), listed)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def with_names(model: nn.Module, args: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the positional arguments of a model's forward.

    Raises:
        RoadError: for an argument that is there twice, and for too many.
    """
    if not args:
        return dict(inputs)
    names = [
        parameter.name
        for parameter in inspect.signature(inner_model(model).forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
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
    """The rows and columns of the tokens.

    Raises:
        RoadError: where there are no tokens.
    """
    for name in ("input_ids", "inputs_embeds", "inputs"):
        tokens = inputs.get(name)
        if tokens is None:
            continue
        if not torch.is_tensor(tokens) or tokens.ndim < 2:
            raise RoadError(f"{name} is {quoted(tokens)}: expected a tensor, [rows, columns]")
        return int(tokens.shape[0]), int(tokens.shape[1])
    raise RoadError("no input given: expected input_ids=… or inputs_embeds=…")


def kept_tokens(
    inputs: Mapping[str, Any], model: nn.Module, device: torch.device
) -> Int[Tensor, "rows columns"]:
    """The attention mask: 1 for a token, 0 for padding; columns in a cache included.

    Raises:
        RoadError: for an attention_mask that does not fit, and for padded ids without one.
    """
    rows, columns = shape_of(inputs)
    cached = cached_columns(inputs)
    mask = inputs.get("attention_mask")
    if mask is not None:
        _check_mask(mask, rows, columns, cached)
        return mask  # type: ignore[no-any-return]
    if cached is None:
        raise RoadError(
            "the cache does not tell how many columns it holds: give attention_mask, [rows, "
            "columns with those]"
        )
    if not cached and is_padded(inputs, model):
        raise RoadError(
            "input_ids are padded, and no attention_mask says where: give attention_mask, as the "
            "tokenizer does"
        )
    return torch.ones(rows, cached + columns, dtype=torch.long, device=device)


def _check_mask(mask: Any, rows: int, columns: int, cached: int | None) -> None:
    if not torch.is_tensor(mask) or mask.ndim != 2 or mask.shape[0] != rows:
        shape = tuple(mask.shape) if torch.is_tensor(mask) else type(mask).__name__
        raise RoadError(
            f"attention_mask of shape {shape} for {rows} rows: expected [rows, columns]"
        )
    total = None if cached is None else cached + columns
    if mask.shape[1] < columns or (total is not None and mask.shape[1] != total):
        tokens = f"{columns} tokens a row"
        if cached:
            tokens += f" and {cached} columns in the cache"
        raise RoadError(
            f"attention_mask has {mask.shape[1]} columns for {tokens}: expected {total or columns}"
        )
    # On other devices the check would wait for the device.
    if mask.device.type == "cpu" and not bool(mask.any(1).all()):
        raise RoadError("attention_mask keeps no token of a row: expected at least one in each")


def with_mask(inputs: dict[str, Any], model: nn.Module, device: torch.device) -> dict[str, Any]:
    """The arguments of `generate` with a mask: the caller's, or what transformers infers without.

    Raises:
        RoadError: for a mask that does not fit.
    """
    rows, columns = shape_of(inputs)
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = torch.ones(rows, columns, dtype=torch.long, device=device)
        pad, ends = (setting(name, model, inputs) for name in ("pad_token_id", "eos_token_id"))
        ids = inputs.get("input_ids")
        if ids is not None and pad is not None and pad not in _listed(ends):
            mask = (ids != pad).long()
    # The tokens of the call may be all of the sequence, or those that are not in the cache yet.
    is_whole = torch.is_tensor(mask) and mask.shape[-1] == columns
    _check_mask(mask, rows, columns, 0 if is_whole else cached_columns(inputs))
    return {**inputs, "attention_mask": mask}


def _listed(tokens: Any) -> list[Any]:
    return tokens if isinstance(tokens, list) else [tokens]


def is_padded(inputs: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether ids without a mask begin or end with padding, by the model's configuration.

    False where the padding token is also the first or the last token of a sequence.
    """
    ids, config = inputs.get("input_ids"), text_config(model)
    if ids is None or ids.ndim != 2 or not ids.shape[1]:
        return False
    pad = getattr(config, "pad_token_id", None)
    for name in ("eos_token_id", "bos_token_id"):
        tokens = getattr(config, name, None)
        if pad == tokens or (isinstance(tokens, (list, tuple)) and pad in tokens):
            return False
    return pad is not None and bool((ids[:, [0, -1]] == pad).any())


def with_own_positions(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with position_ids that do not count padding on the left, as in `generate`."""
    mask = inputs.get("attention_mask")
    if inputs.get("position_ids") is not None or not torch.is_tensor(mask) or mask.ndim != 2:
        return dict(inputs)
    padding = (mask.long().cumsum(1) == 0).sum(1, keepdim=True)
    positions = torch.arange(mask.shape[1], device=mask.device) - padding
    columns = shape_of(inputs)[1]
    return {**inputs, "position_ids": positions.clamp(min=0)[:, -columns:]}


def check_unpacked(inputs: Mapping[str, Any]) -> None:
    """Refuse rows into which several sequences are packed: a prompt would be all but the last.

    Without a mask, transformers takes positions that don't go on by one for sequences of their own.

    Raises:
        RoadError: where position_ids don't go on by one within a row, or cu_seq_lens_q says it.
    """
    positions = inputs.get("position_ids")
    packed = inputs.get("cu_seq_lens_q") is not None
    masked = inputs.get("attention_mask") is not None
    if torch.is_tensor(positions) and not masked and positions.ndim == 2 and positions.shape[1] > 1:
        # The one case that waits for a GPU, in no step of a generation.
        packed = packed or bool((positions.diff(dim=1) != 1).any())
    if packed:
        raise RoadError(
            "several sequences are packed into a row, where the positions of a prompt are those of "
            "one: expected a row each, with an attention_mask"
        )


def check_prompt_length(length: Any, kept: Tensor) -> Int[Tensor, " rows"] | None:
    """Check the lengths of the rows' prompts; None stays None.

    Raises:
        RoadError: where they are no lengths of these rows.
    """
    if length is None:
        return None
    if not torch.is_tensor(length) or length.shape != kept.shape[:1] or not _is_integer(length):
        raise RoadError(
            f"prompt_length {quoted(length)}: expected a tensor [rows] of integers, for "
            f"{len(kept)} rows"
        )
    if length.device.type == kept.device.type == "cpu":  # elsewhere it would wait for the device
        most = kept.bool().sum(1)
        if bool(((length < 0) | (length > most)).any()):
            raise RoadError(
                f"prompt_length {length.tolist()[:8]}: expected at most the tokens that the mask "
                f"keeps, {most.tolist()[:8]}"
            )
    return length


def check_scored(scored: Any, rows: int, columns: int, vocabulary: int) -> None:
    """Check the arguments of `RoadModel.token_nll`.

    Raises:
        RoadError: where they are not [2, tokens] and [tokens], or outside of the call.
    """
    if not isinstance(scored, tuple) or not all(torch.is_tensor(tensor) for tensor in scored):
        raise RoadError("token_nll: expected two tensors, places [2, tokens] and labels [tokens]")
    where, labels = scored
    fits = where.ndim == 2 and len(where) == 2 and labels.shape == where.shape[1:]
    if not fits or not labels.numel():
        raise RoadError(
            f"token_nll: places {tuple(where.shape)} and labels {tuple(labels.shape)}: expected "
            "[2, tokens] and [tokens]"
        )
    if not (_is_integer(where) and _is_integer(labels)):
        raise RoadError(
            f"token_nll: places of {where.dtype} and labels of {labels.dtype}: expected integers, "
            "as torch.long"
        )
    if where.device.type == labels.device.type == "cpu":  # elsewhere it would wait for the device
        limits = (("rows", where[0], rows), ("columns", where[1], columns))
        for what, values, limit in (*limits, ("labels", labels, vocabulary)):
            least, most = int(values.min()), int(values.max())
            if least < 0 or most >= limit:
                raise RoadError(
                    f"token_nll: {what} from {least} to {most}: expected 0 to {limit - 1}"
                )


def _is_integer(values: Tensor) -> bool:
    return values.dtype in (torch.long, torch.int)
