"""The language model inside a transformers model, its layers and their components."""

import inspect
from collections.abc import Iterator
from typing import Any, Final

from torch import nn
from transformers import PreTrainedModel

from roadint.errors import RoadError, check_known, listing, quoted

COMPONENTS: Final[dict[str, tuple[str, ...]]] = {
    "block_output": (),
    "attention_output": ("self_attn", "self_attention", "attention", "attn"),
    "mlp_output": ("mlp", "feed_forward", "ffn", "block_sparse_moe"),
}
"""Component → the names of its module in the architectures; "block_output" is the layer itself."""

# The names of the list of layers in the architectures, where other lists have the same length.
_LAYERS = ("layers", "layer", "h", "blocks", "block")


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside torch.compile(module), or the module itself."""
    return module._modules["_orig_mod"] if type(module).__name__ == "OptimizedModule" else module  # type: ignore[return-value]


def named_modules(
    model: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model by path, as if nothing were compiled.

    What torch.compile puts around a module is left out, of the paths too; `get_submodule` finds a
    module by either path.

    Args:
        model: Any model.
        remove_duplicate: Whether a module that is in several places comes once.
    """
    for path, module in model.named_modules(remove_duplicate=remove_duplicate):
        if uncompiled(module) is module:
            yield ".".join(part for part in path.split(".") if part != "_orig_mod"), module


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, also inside a multimodal one.

    Args:
        model: A transformers model, or a wrapper of one that shows its configuration.

    Returns:
        A transformers configuration, whose class depends on the architecture.

    Raises:
        RoadError: where there is none.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise RoadError(
            f"{type(model).__name__} is no transformers model: "
            "expected a decoder-only PreTrainedModel"
        )
    return config.get_text_config(decoder=True)


def inner_model(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers (PEFT's, compiled ones), or the model itself.

    Every forward and every step of `generate` runs it.
    """
    for module in map(uncompiled, model.modules()):
        if isinstance(module, PreTrainedModel):
            return module
    return model


def decoder_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The body of the language model, without heads, other towers and their projectors.

    Args:
        model: A transformers model, or a wrapper of one.

    Returns:
        The body's path in `model`, and the body.
    """
    inner: Any = inner_model(model)
    paths = {id(module): path for path, module in named_modules(model)}
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    for part in (decoder, getattr(inner, "base_model", None)):
        body = uncompiled(part) if isinstance(part, nn.Module) else None
        if body is not None and id(body) in paths and _lists(model, body):
            return paths[id(body)], body
    return paths[id(inner)], inner


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder layers.

    Args:
        model: A transformers model, or a wrapper of one.

    Returns:
        The path of their list in `model`, and the list.

    Raises:
        RoadError: where the model has no such list.
    """
    prefix, body = decoder_of(model)
    lists = _lists(model, body)
    outermost = min((path.count(".") for path, _ in lists), default=0)  # experts lie inside
    lists = [(path, layers) for path, layers in lists if path.count(".") == outermost]
    if len(lists) > 1:
        lists = [(path, layers) for path, layers in lists if path.rpartition(".")[2] in _LAYERS]
    if len(lists) != 1:
        raise RoadError(
            f"no list of its decoder layers in {type(model).__name__}: "
            "expected a decoder-only transformers model"
        )
    ((path, layers),) = lists
    return ".".join(filter(None, (prefix, path))), layers


def site_path(model: nn.Module, layer: int, component: str) -> str:
    """The module whose output is a site.

    Args:
        model: A transformers model, or a wrapper of one.
        layer: From 0.
        component: One of COMPONENTS.

    Returns:
        The module's dotted path in `model`.

    Raises:
        RoadError: for an unknown layer or component, and where the architecture has no module whose
            output is the component.
    """
    path, layers = find_layers(model)
    if not isinstance(layer, int) or not 0 <= layer < len(layers):
        raise RoadError(
            f"layer {quoted(layer)} is outside the model: "
            f"expected 0 to {len(layers) - 1} (layers count from 0)"
        )
    check_known("component", component, COMPONENTS)
    names = COMPONENTS[component]
    if not names:
        return f"{path}.{layer}"
    architecture, block = type(model).__name__, layers[layer]
    name = component_in(block, component)
    if name is None:
        raise RoadError(
            f"layer {layer} of {architecture} has no {component}: "
            f"looked for {listing(names)} in it; try 'block_output'"
        )
    if name == "block_sparse_moe" and hasattr(block, "shared_mlp"):
        raise RoadError(
            f"layer {layer} of {architecture} sums block_sparse_moe and shared_mlp: "
            f"no module's output is its {component}; try 'block_output'"
        )
    if _adds_residual(getattr(block, name)):
        raise RoadError(
            f"{path}.{layer}.{name} of {architecture} adds the residual stream inside: "
            f"its output is no {component}; try 'block_output'"
        )
    return f"{path}.{layer}.{name}"


def is_after(model: nn.Module, path: str) -> bool:
    """Whether a module comes after the body of the language model, as a head does.

    Args:
        model: A transformers model, or a wrapper of one.
        path: The module's path.

    Returns:
        True where it is a part of the transformers model beside the body, and behind it.
    """
    inner = inner_model(model)
    paths = {id(module): name for name, module in named_modules(model)}
    prefix, body = paths[id(inner)], decoder_of(model)[1]
    seen_body = False
    for name, child in inner.named_children():
        own = f"{prefix}.{name}" if prefix else name
        if path == own or path.startswith(f"{own}."):
            return seen_body
        seen_body = seen_body or any(part is body for part in uncompiled(child).modules())
    return False


def component_in(block: nn.Module, component: str) -> str | None:
    """The name of a component's module in a layer; None where the layer has no such module."""
    names = COMPONENTS[component]
    return next((name for name in names if isinstance(getattr(block, name, None), nn.Module)), None)


def _lists(model: nn.Module, body: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Candidates for the decoder layers: module lists whose length is the number of layers."""
    count = getattr(text_config(model), "num_hidden_layers", None)
    return [
        (path, module)
        for path, module in named_modules(body)
        if isinstance(module, nn.ModuleList) and len(module) == count and "vision" not in path
    ]


def _adds_residual(module: nn.Module) -> bool:
    """Whether a component adds the residual stream to its output (Bloom, MPT, BERT)."""
    return any(
        {"residual", "input_tensor"} & set(inspect.signature(part.forward).parameters)
        for part in (module, *module.children())
    )
