"""Where in a transformers model a layer and a component are, and what the model is like around them."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from roadint.errors import RoadError, check_known, listing, quoted

# What the architectures call a component, inside one decoder layer; the layer itself is "block_output".
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "block_output": (),
    "attention_output": ("self_attn", "self_attention", "attention", "attn"),
    "mlp_output": ("mlp", "feed_forward", "ffn", "block_sparse_moe"),
}
_LAYERS = (
    "layers",
    "layer",
    "h",
    "blocks",
    "block",
)  # what they call the list of layers, where several lists are as long
# The arguments that take what a model keeps from token to token, newest name first (5.24 renamed past_key_values).
CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")
# Layers of these give hidden states in another order than [rows, columns, width].
_OTHER_ORDER = ("xlnet",)


def uncompiled(module: nn.Module) -> nn.Module:
    """What torch.compile(module) was made of, or the module itself."""
    return module._modules["_orig_mod"] if type(module).__name__ == "OptimizedModule" else module  # type: ignore[return-value]


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, also inside a multimodal one. Raises RoadError where there is none."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise RoadError(
            f"{type(model).__name__} is no transformers model: expected a decoder-only PreTrainedModel"
        )
    return config.get_text_config(decoder=True)


def check_model(model: nn.Module) -> None:
    """Raises RoadError for a model in which rows and columns are not what the edits take them for."""
    config = text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise RoadError(
            f"{type(model).__name__} is an encoder-decoder: its prompt and its answer are other sequences; "
            "expected a decoder-only transformers model, or an encoder with a head"
        )
    if type(inner_model(model)).forward is nn.Module.forward:
        raise RoadError(
            f"{type(model).__name__} has no forward: expected one of the models inside it, such as its thinker"
        )
    if config.model_type in _OTHER_ORDER:
        raise RoadError(
            f"{type(model).__name__} has hidden states [columns, rows, width]: expected [rows, columns, width]"
        )
    prompts = getattr(model, "peft_config", None)
    if isinstance(prompts, Mapping) and any(
        getattr(each, "is_prompt_learning", False) for each in prompts.values()
    ):
        raise RoadError(
            "the PeftModel puts virtual tokens before each prompt: expected adapters on layers alone, such as LoRA"
        )


def inner_model(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers (PEFT's, compiled ones): what every forward and every step of `generate` runs."""
    return next(
        (
            uncompiled(each)
            for each in model.modules()
            if isinstance(uncompiled(each), PreTrainedModel)
        ),
        model,
    )


def width_of(model: nn.Module) -> int:
    """The width d of the hidden states."""
    return int(text_config(model).hidden_size)


def takes_positions(model: nn.Module) -> bool:
    """Whether the model's forward takes position_ids; the others count by the attention mask."""
    return "position_ids" in inspect.signature(inner_model(model).forward).parameters


def counts_padding(model: nn.Module) -> bool:
    """Whether the model, left alone, gives the first column position 0, padding or not, and looks positions up in a table.

    `generate` counts each row's own tokens for it. Rotary positions are relative, so that padding changes nothing; encoders, and
    models whose tables begin elsewhere, count their own way.
    """
    inner = inner_model(model)
    if not takes_positions(inner) or not bool(getattr(inner, "can_generate", bool)()):
        return False
    size = getattr(text_config(inner), "max_position_embeddings", None)
    tables = [
        path
        for path, each in inner.named_modules()
        if type(each) is nn.Embedding
        and each.num_embeddings == size
        and path.endswith(("wpe", "position_embeddings", "positions_embed"))
    ]
    return bool(tables) and not any(
        hasattr(each, "create_position_ids_from_input_ids") for each in inner.modules()
    )


def check_recomputation(model: nn.Module) -> None:
    """Raises RoadError where training would compute layers once more, after the edit of a call is gone (gradient checkpointing)."""
    if (
        torch.is_grad_enabled()
        and model.training
        and getattr(model, "is_gradient_checkpointing", False)
    ):
        raise RoadError(
            "gradient checkpointing computes the layers again in the backward pass, without the edit: "
            "expected model.gradient_checkpointing_disable(), or model.eval(), which a frozen model trains in as well"
        )


def cache_name(model: nn.Module) -> str:
    """The argument of the model's forward that takes a cache: transformers renamed it in 5.24."""
    return (
        "cache"
        if "cache" in inspect.signature(inner_model(model).forward).parameters
        else "past_key_values"
    )


def cached_columns(inputs: Mapping[str, Any]) -> int | None:
    """How many columns the cache in a forward's arguments holds, 0 without one; None where it can't tell (recurrent states)."""
    cache = next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError, TypeError):
        return None


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module runs, also where accelerate brings its weights only for a moment; None where nothing tells."""
    hook = getattr(module, "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        place = getattr(each, "execution_device", None)
        if place is not None:
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    own = next((each.device for each in module.parameters() if each.device.type != "meta"), None)
    if own is not None:
        return own
    return next((place for place in map(device_of, module.children()) if place is not None), None)


def decoder_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The language model's body, by its path: without heads, other towers and what leads from them to it."""
    inner: Any = inner_model(model)
    paths = {id(module): path for path, module in model.named_modules()}
    told = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    for body in (told, getattr(inner, "base_model", None)):
        if isinstance(body, nn.Module) and id(body) in paths and _lists(model, body):
            return paths[id(body)], body
    return paths[id(inner)], inner


def _lists(model: nn.Module, body: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """What may be the decoder layers: the lists inside a body that are as long as there are layers."""
    count = getattr(text_config(model), "num_hidden_layers", None)
    listed = (
        (path, module) for path, module in body.named_modules() if isinstance(module, nn.ModuleList)
    )
    return [
        (path, module) for path, module in listed if len(module) == count and "vision" not in path
    ]


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the list of the decoder layers. Raises RoadError where the model has no such list."""
    prefix, body = decoder_of(model)
    found = _lists(model, body)
    outermost = min(
        (path.count(".") for path, _ in found), default=0
    )  # experts and the like lie inside
    found = [(path, layers) for path, layers in found if path.count(".") == outermost]
    if len(found) > 1:
        found = [(path, layers) for path, layers in found if path.rpartition(".")[2] in _LAYERS]
    if len(found) != 1:
        raise RoadError(
            f"no list of its decoder layers in {type(model).__name__}: expected a decoder-only transformers model"
        )
    ((path, layers),) = found
    return ".".join(filter(None, (prefix, path))), layers


def site_path(model: nn.Module, layer: int, component: str) -> str:
    """The dotted path of the module whose output is the site. Raises RoadError for an unknown layer or component."""
    path, layers = find_layers(model)
    if not isinstance(layer, int) or not 0 <= layer < len(layers):
        raise RoadError(
            f"layer {quoted(layer)} is outside the model: expected 0 to {len(layers) - 1} (layers count from 0)"
        )
    check_known("component", component, _COMPONENTS)
    names = _COMPONENTS[component]
    if not names:
        return f"{path}.{layer}"
    name = next(
        (each for each in names if isinstance(getattr(layers[layer], each, None), nn.Module)), None
    )
    if name is None:
        raise RoadError(
            f"layer {layer} of {type(model).__name__} has no {component}: looked for {listing(names)} in it; try 'block_output'"
        )
    if name == "block_sparse_moe" and hasattr(layers[layer], "shared_mlp"):
        raise RoadError(
            f"layer {layer} of {type(model).__name__} sums block_sparse_moe and shared_mlp: no module's output is its {component}; "
            "try 'block_output'"
        )
    module = getattr(layers[layer], name)
    if _adds_residual(module):
        raise RoadError(
            f"{path}.{layer}.{name} of {type(model).__name__} adds the residual stream inside: its output is no {component}; "
            "try 'block_output'"
        )
    return f"{path}.{layer}.{name}"


def _adds_residual(module: nn.Module) -> bool:
    """Whether a component is given the residual stream, to add it to its own output (Bloom, MPT; BERT's attention)."""
    within = [module, *module.children()]
    return any(
        {"residual", "input_tensor"} & set(inspect.signature(each.forward).parameters)
        for each in within
    )


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
            return (
                count
                if table.padding_idx is None
                else min(count, table.num_embeddings - table.padding_idx - 1)
            )
    buffered = any(
        each.ndim == 2 and each.shape[0] == count for each in model.buffers()
    )  # GPT-J's sines
    return count if buffered else None
