"""Properties of a transformers model: width, device, cache, positions."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from roadint.architecture.layers import inner_model, text_config
from roadint.errors import RoadError

CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")
"""The names of the forward's argument that takes a cache, the newest first."""

# Model types whose hidden states are not [rows, columns, width].
_OTHER_ORDER = ("xlnet",)
_POSITION_TABLES = ("wpe", "position_embeddings", "positions_embed")


def check_model(model: nn.Module) -> None:
    """Refuse a model whose hidden states edits can't address by row and column.

    Args:
        model: The model to edit.

    Raises:
        RoadError: for what is no decoder-only model, or encoder, of transformers.
    """
    name, config = type(model).__name__, text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise RoadError(
            f"{name} is an encoder-decoder: its prompt and its answer are other sequences; "
            "expected a decoder-only transformers model, or an encoder with a head"
        )
    if type(inner_model(model)).forward is nn.Module.forward:
        raise RoadError(
            f"{name} has no forward: expected one of the models inside it, such as its thinker"
        )
    if config.model_type in _OTHER_ORDER:
        raise RoadError(
            f"{name} has hidden states [columns, rows, width]: expected [rows, columns, width]"
        )
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, Mapping) and any(
        getattr(adapter, "is_prompt_learning", False) for adapter in adapters.values()
    ):
        raise RoadError(
            "the PeftModel puts virtual tokens before each prompt: "
            "expected adapters on layers alone, such as LoRA"
        )


def check_recomputation(model: nn.Module) -> None:
    """Refuse training with gradient checkpointing.

    It computes layers once more, after the edit of a call is gone.

    Args:
        model: The model that is to run.

    Raises:
        RoadError: where layers would be computed again.
    """
    if torch.is_grad_enabled() and model.training and _computes_again(model):
        raise RoadError(
            "gradient checkpointing computes the layers again in the backward pass, "
            "without the edit: expected model.gradient_checkpointing_disable(), or model.eval(), "
            "which a frozen model trains in as well"
        )


def _computes_again(model: nn.Module) -> bool:
    inner, newer = inner_model(model), "is_activation_checkpointing"
    name = newer if hasattr(type(inner), newer) else "is_gradient_checkpointing"  # which warns
    return bool(getattr(inner, name, False))


def width_of(model: nn.Module) -> int:
    """The width of the hidden states, in dims."""
    return int(text_config(model).hidden_size)


def device_of(module: nn.Module) -> torch.device | None:
    """The device on which a module runs, also where accelerate moves its weights for a call only.

    Args:
        module: A model or a part of one.

    Returns:
        The device; None where it is unknown.
    """
    hook = getattr(module, "_hf_hook", None)
    for part in (hook, *getattr(hook, "hooks", ())):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    for parameter in module.parameters():
        if parameter.device.type != "meta":
            return parameter.device
    return next(filter(None, map(device_of, module.children())), None)


def input_device(model: nn.Module) -> torch.device:
    """The device on which a model takes its inputs; the CPU where it is unknown."""
    return device_of(model) or torch.device("cpu")


def cache_name(model: nn.Module) -> str:
    """The argument of the model's forward that takes a cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in _arguments(model) else "past_key_values"


def cached_columns(inputs: Mapping[str, Any]) -> int | None:
    """How many columns the cache in a forward's arguments holds.

    Args:
        inputs: The arguments.

    Returns:
        The number, 0 without a cache; None where it is unknown (recurrent states).
    """
    cache = next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError, TypeError):
        return None


def takes_positions(model: nn.Module) -> bool:
    """Whether the model's forward takes position_ids; other models count by the attention mask."""
    return "position_ids" in _arguments(model)


def counts_padding(model: nn.Module) -> bool:
    """Whether the model has a table of positions and counts padding, unless it gets position_ids.

    `generate` makes position_ids for such a model. Rotary positions are relative, so padding does
    not matter; encoders, and models whose tables have an offset, count by themselves.

    Args:
        model: A transformers model, or a wrapper of one.

    Returns:
        Whether it does.
    """
    inner = inner_model(model)
    if not (takes_positions(inner) and isinstance(inner, PreTrainedModel) and inner.can_generate()):
        return False
    size = getattr(text_config(inner), "max_position_embeddings", None)
    has_table = any(
        type(module) is nn.Embedding
        and module.num_embeddings == size
        and path.endswith(_POSITION_TABLES)
        for path, module in inner.named_modules()
    )
    return has_table and not any(
        hasattr(module, "create_position_ids_from_input_ids") for module in inner.modules()
    )


def positions_of(model: nn.Module) -> int | None:
    """The number of positions in the model's table.

    Args:
        model: A transformers model, or a wrapper of one.

    Returns:
        The number of positions; None where the model computes them.
    """
    count = getattr(text_config(model), "max_position_embeddings", None)
    if not isinstance(count, int):
        return None
    for table in model.modules():
        if (
            isinstance(table, nn.Embedding)
            and table is not model.get_input_embeddings()  # type: ignore[operator]
            and count <= table.num_embeddings <= count + 2
        ):
            # OPT's has two more in front; RoBERTa counts from the one after the padding's.
            if table.padding_idx is None:
                return count
            return min(count, table.num_embeddings - table.padding_idx - 1)
    has_buffer = any(
        buffer.ndim == 2 and buffer.shape[0] == count for buffer in model.buffers()
    )  # GPT-J's sines
    return count if has_buffer else None


def _arguments(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(inner_model(model).forward).parameters
