"""Where an intervention acts in a pyvene model: its layer, the model's type, the width."""

import re
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from roadint.architecture.layers import find_layers, inner_model, site_path, text_config
from roadint.architecture.properties import width_of
from roadint.errors import RoadError, quoted
from roadint.interventions.arguments import index_of
from roadint.interventions.pyvene.patches import pyvene

_REGISTERED = ("block_output", "attention_output", "mlp_output")
_STREAM = (*_REGISTERED, "block_input", "attention_input", "mlp_input")  # as wide as the model
_LAYER_IN_PATH = re.compile(r"[.\[](\d+)(?=[.\]])")  # the 3 in "model.layers[3].output"
_MAX_WIDTH = 1 << 24


def layer_in_path(path: str, wanted: int | None) -> int | None:
    """The layer that a path such as "model.layers[3].output" names; None where it names none.

    Args:
        path: A component that is a path.
        wanted: The layer that is set beside it, if any.

    Raises:
        RoadError: where the path is not in the wanted layer.
    """
    layers = _LAYER_IN_PATH.findall(path)
    if wanted is not None and (not layers or int(layers[0]) != wanted):
        raise RoadError(
            f"component {quoted(path)} is not in layer {wanted}: "
            "expected one path, without a layer beside it"
        )
    return int(layers[0]) if layers else None


def position_width(embed_dim: Any, units: Any) -> int:
    """The width of one position.

    Args:
        embed_dim: The width times the number of positions, by which pyvene multiplies it.
        units: The number of positions.

    Raises:
        RoadError: where they are no counts, or the width is not divisible by the number.
    """
    width, count = index_of(embed_dim), index_of(units)
    if count is None or count < 1:
        raise RoadError(f"max_number_of_units {quoted(units)}: expected a count of at least 1")
    if width is None or not 0 < width < _MAX_WIDTH or width % count:
        raise RoadError(
            f"embed_dim {quoted(embed_dim)} is no width: "
            "expected that of the hidden states, such as 4096"
        )
    return width // count


def width_at(model: nn.Module, component: str, module: nn.Module) -> int | None:
    """The width of the hidden states of a module; None where the model does not tell it."""
    if component not in _STREAM and not _is_site(model, module):
        return None
    try:
        return width_of(model)
    except (RoadError, AttributeError):  # a model that pyvene knows and roadint does not
        return None


def check_layer(model: nn.Module, layer: int, module: nn.Module) -> None:
    """Check that a module is a layer of the language model.

    Raises:
        RoadError: where it is not, as in the vision tower of a multimodal model.
    """
    layers = _layers_of(model)
    if layers is not None and module is not layers[layer]:
        raise RoadError(
            f"pyvene's layer {layer} of {type(model).__name__} is none of the language model's"
        )


def check_source_fits(source: Any, base: Tensor) -> None:
    """Check that a source fits the hidden states of the base.

    Raises:
        RoadError: where dtype, shape or device do not fit.
    """
    if not torch.is_tensor(source) or not source.is_floating_point():
        raise RoadError(
            f"a source is {quoted(source)}: expected hidden states of width {base.shape[-1]}"
        )
    fits = source.ndim <= base.ndim and source.shape[-1] == base.shape[-1]
    pairs = zip(reversed(source.shape[:-1]), reversed(base.shape[:-1]), strict=False)
    if not fits or any(size not in (1, wanted) for size, wanted in pairs):
        raise RoadError(
            f"a source of shape {tuple(source.shape)} "
            f"for hidden states of shape {tuple(base.shape)}: expected the same"
        )
    if source.device != base.device:
        raise RoadError(
            f"a source on {source.device} for hidden states on {base.device}: expected the same"
        )


def register_model(model: nn.Module) -> None:
    """Register a type of model with pyvene, unless pyvene knows it.

    A wrapper's type is registered for every model again, since what is in it differs.

    Raises:
        RoadError: where the model has no decoder layers.
    """
    if type(model) in pyvene.type_to_module_mapping and inner_model(model) is model:
        return
    modules = {}
    for component in _REGISTERED:
        inside = _inside_layer(model, component)
        if inside is not None:
            modules[component] = (inside, "register_forward_hook")
    pyvene.type_to_module_mapping[type(model)] = modules
    pyvene.type_to_dimension_mapping[type(model)] = dict.fromkeys(modules, (_width_path(model),))


def _inside_layer(model: nn.Module, component: str) -> str | None:
    """A component's path for any layer, by the first one that has it; None where none has it."""
    path, layers = find_layers(model)
    for layer in range(len(layers)):
        with suppress(RoadError):
            return f"{path}[%s]" + site_path(model, layer, component).removeprefix(
                f"{path}.{layer}"
            )
    return None


def _width_path(model: nn.Module) -> str:
    """Where the model's configuration tells the width of its hidden states."""
    whole, of_text = model.config, text_config(model)
    parts = [name for name, value in vars(whole).items() if value is of_text]
    return ".".join([*parts[:1], "hidden_size"])


def _layers_of(model: nn.Module) -> nn.ModuleList | None:
    """The decoder layers; None for a model that pyvene knows and roadint does not."""
    try:
        return find_layers(model)[1]
    except RoadError:
        return None


def _is_site(model: nn.Module, module: nn.Module) -> bool:
    """Whether a module is a decoder layer, or the attention or the MLP of one."""
    for index, layer in enumerate(_layers_of(model) or ()):
        if module is layer:
            return True
        if any(module is inside for inside in layer.children()):
            return any(module is _submodule(model, index, component) for component in _REGISTERED)
    return False


def _submodule(model: nn.Module, layer: int, component: str) -> nn.Module | None:
    try:
        return model.get_submodule(site_path(model, layer, component))
    except RoadError:
        return None
