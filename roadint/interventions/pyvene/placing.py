"""Where an intervention acts in a pyvene model: the site said once, the model type registered, the width and the device found."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from roadint.architecture.layers import find_layers, site_path
from roadint.architecture.properties import width_of
from roadint.errors import RoadError, quoted
from roadint.interventions.pyvene.patches import pyvene
from roadint.interventions.pyvene.selection import index_of

_REGISTERED = ("block_output", "attention_output", "mlp_output")
_STREAM = (*_REGISTERED, "block_input", "attention_input", "mlp_input")  # as wide as the model
_PLACE_IN_PATH = re.compile(r"[.\[](\d+)(?=[.\]])")  # the 3 in "model.layers[3].output"
_MAX_WIDTH = 1 << 24


def layer_index(layer: Any) -> int:
    """The layer as an int. Raises RoadError where it counts none."""
    index = index_of(layer)
    if index is None or index < 0:
        raise RoadError(f"layer {quoted(layer)} is no index: expected an integer from 0")
    return index


def component_name(component: Any) -> str:
    """The component. Raises RoadError where it is no name."""
    if not isinstance(component, str) or not component:
        raise RoadError(
            f"component {quoted(component)} is no name: expected one such as 'block_output'"
        )
    return component


def layer_in_path(path: str, wanted: int | None) -> int | None:
    """The layer that a path such as "model.layers[3].output" names, if any. Raises RoadError where it is not the wanted one."""
    places = _PLACE_IN_PATH.findall(path)
    if wanted is not None and (not places or int(places[0]) != wanted):
        raise RoadError(
            f"component {quoted(path)} is not in layer {wanted}: expected one path, without a layer beside it"
        )
    return int(places[0]) if places else None


def told_width(embed_dim: Any, units: Any) -> int:
    """The width that was given: pyvene multiplies it by the number of positions, although keep_last_dim keeps them apart."""
    width, count = index_of(embed_dim), index_of(units)
    if count is None or count < 1:
        raise RoadError(f"max_number_of_units {quoted(units)}: expected a count of at least 1")
    if width is None or not 0 < width < _MAX_WIDTH or width % count:
        raise RoadError(
            f"embed_dim {quoted(embed_dim)} is no width: expected that of the hidden states, such as 4096"
        )
    return width // count


def width_at(model: nn.Module, component: str, module: nn.Module) -> int | None:
    """The width of the hidden states there; None where the model does not tell."""
    if component not in _STREAM and not _is_site(model, module):
        return None
    try:
        return width_of(model)
    except (RoadError, AttributeError):  # one that pyvene knows and roadint does not
        return None


def check_layer(model: nn.Module, layer: int, module: nn.Module) -> None:
    """Raises RoadError where the module is not the language model's own layer."""
    layers = _layers_of(model)
    if layers is not None and module is not layers[layer]:
        raise RoadError(
            f"pyvene's layer {layer} of {type(model).__name__} is none of the language model's"
        )


def check_source(source: Any, base: Tensor) -> None:
    """Raises RoadError where a source does not fit the hidden states that it is put into."""
    if not torch.is_tensor(source) or not source.is_floating_point():
        raise RoadError(
            f"a source is {quoted(source)}: expected hidden states of width {base.shape[-1]}"
        )
    fits = source.ndim <= base.ndim and source.shape[-1] == base.shape[-1]
    pairs = zip(reversed(source.shape[:-1]), reversed(base.shape[:-1]), strict=False)
    if not fits or any(size not in (1, wanted) for size, wanted in pairs):
        raise RoadError(
            f"a source of shape {tuple(source.shape)} for hidden states of shape {tuple(base.shape)}: expected the same"
        )
    if source.device != base.device:
        raise RoadError(
            f"a source on {source.device} for hidden states on {base.device}: expected the same"
        )


def register(model: nn.Module) -> None:
    """Tell pyvene where this model's type keeps its layers, where it does not know. Raises RoadError where there are none."""
    if type(model) in pyvene.type_to_module_mapping:
        return
    path, _ = find_layers(model)
    modules = {}
    for component in _REGISTERED:
        inside = site_path(model, 0, component).removeprefix(f"{path}.0")
        modules[component] = (f"{path}[%s]{inside}", "register_forward_hook")
    pyvene.type_to_module_mapping[type(model)] = modules
    pyvene.type_to_dimension_mapping[type(model)] = dict.fromkeys(_REGISTERED, ("hidden_size",))


def _layers_of(model: nn.Module) -> nn.ModuleList | None:
    """The decoder layers; None for a model that pyvene knows and roadint does not."""
    try:
        return find_layers(model)[1]
    except RoadError:
        return None


def _is_site(model: nn.Module, module: nn.Module) -> bool:
    """Whether it is a decoder layer, or the attention or the MLP of one: their outputs are as wide as the model."""
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
