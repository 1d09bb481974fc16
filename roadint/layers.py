"""Sites: where in a transformers model a layer and a component are."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from roadint.errors import RoadError, check_known, listing

# What the architectures call a component, inside one decoder layer; the layer itself is "block_output".
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "block_output": (),
    "attention_output": ("self_attn", "self_attention", "attention", "attn"),
    "mlp_output": ("mlp", "feed_forward", "ffn", "block_sparse_moe"),
}


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, also inside a multimodal one. Raises RoadError where there is none."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise RoadError(f"{type(model).__name__} is no transformers model: expected a decoder-only PreTrainedModel")
    return config.get_text_config(decoder=True)


def width_of(model: nn.Module) -> int:
    """The width d of the hidden states."""
    return int(text_config(model).hidden_size)


def takes_positions(model: nn.Module) -> bool:
    """Whether the model's forward takes position_ids; the others count by the attention mask."""
    return "position_ids" in inspect.signature(model.forward).parameters


def check_recomputation(model: nn.Module) -> None:
    """Raises RoadError where training would compute layers once more, after the edit of a call is gone (gradient checkpointing)."""
    if torch.is_grad_enabled() and model.training and getattr(model, "is_gradient_checkpointing", False):
        raise RoadError(
            "gradient checkpointing computes the layers again in the backward pass, without the edit: "
            "expected model.gradient_checkpointing_disable(), or model.eval(), which a frozen model trains in as well"
        )


def cache_name(model: nn.Module) -> str:
    """The argument of the model's forward that takes a cache: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cached_columns(inputs: Mapping[str, Any]) -> int:
    """How many columns the cache in a forward's arguments holds, under either name; 0 where there is none."""
    caches = [inputs[name] for name in ("cache", "past_key_values") if inputs.get(name) is not None]
    return int(caches[0].get_seq_length()) if caches else 0


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the list of the decoder layers. Raises RoadError where the model has no such list."""
    count = text_config(model).num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and "vision" not in path:
            return path, module
    raise RoadError(f"no list of {count} decoder layers in {type(model).__name__}: expected a decoder-only transformers model")


def site_path(model: nn.Module, layer: int, component: str) -> str:
    """The dotted path of the module whose output is the site. Raises RoadError for an unknown layer or component."""
    path, layers = find_layers(model)
    if not 0 <= layer < len(layers):
        raise RoadError(f"layer {layer} is outside the model: expected 0 to {len(layers) - 1} (layers count from 0)")
    check_known("component", component, _COMPONENTS)
    names = _COMPONENTS[component]
    if not names:
        return f"{path}.{layer}"
    for name in names:
        if hasattr(layers[layer], name):
            return f"{path}.{layer}.{name}"
    raise RoadError(f"{type(model).__name__} has no {component}: looked for {listing(names)} in its layers; try 'block_output'")


def positions_of(model: Any) -> int | None:
    """How many positions the model has a table of; None where it computes them."""
    count = getattr(text_config(model), "max_position_embeddings", None)
    if not isinstance(count, int):
        return None
    for table in model.modules():
        if (
            isinstance(table, nn.Embedding)
            and table is not model.get_input_embeddings()
            and count <= table.num_embeddings <= count + 2
        ):
            # OPT's has two rows in front; RoBERTa counts from the row after the padding's.
            return count if table.padding_idx is None else min(count, table.num_embeddings - table.padding_idx - 1)
    buffered = any(each.ndim == 2 and each.shape[0] == count for each in model.buffers())  # GPT-J's sines
    return count if buffered else None
