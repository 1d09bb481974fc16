"""roadint's interventions as a plain pyvene configuration."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roadint._pyvene import pyvene
from roadint.errors import RoadError
from roadint.layers import find_layers, site_path, width_of
from roadint.site import SubspaceIntervention

_COMPONENTS = ("block_output", "attention_output", "mlp_output")


def pyvene_config(model: nn.Module, interventions: SubspaceIntervention | Sequence[SubspaceIntervention]) -> Any:
    """The `pv.IntervenableConfig` of these interventions on this model, as `pv.IntervenableModel(config, model)` takes it.

    Interventions without a width get the model's, and a model type that pyvene does not know (Gemma 3, Qwen 3, …) is
    registered. Layers count from 0, as in pyvene. pyvene's `unit_locations` say the position there. Raises RoadError.
    """
    listed = [interventions] if isinstance(interventions, SubspaceIntervention) else list(interventions)
    if not listed:
        raise RoadError("no interventions given: expected at least one RoadIntervention")
    register(model)
    representations = []
    for intervention in listed:
        site_path(model, intervention.layer, intervention.component)  # refuses what the model does not have
        intervention.bind(width_of(model)).to(next(model.parameters()).device)
        representations.append({"layer": intervention.layer, "component": intervention.component, "intervention": intervention})
    return pyvene.IntervenableConfig(representations, model_type=type(model))


def load(folder: str | Path, model: nn.Module) -> Any:
    """`pv.IntervenableModel.load` for a model type that pyvene may not know, on whatever device the model is.

    pyvene's `save` needs nothing of ours: roadint's interventions write their arguments beside their values, so that dtype,
    variant, partition and basis come back. Raises RoadError where the folder holds none.
    """
    if not (Path(folder) / "config.json").is_file():
        raise RoadError(f"{folder} holds no pyvene model: expected a config.json, as IntervenableModel.save writes it")
    register(model)
    with tempfile.TemporaryDirectory() as here:
        # pyvene loads to the device that the values were saved from.
        shutil.copy(Path(folder) / "config.json", here)
        for path in Path(folder).glob("*.bin"):
            torch.save(torch.load(path, map_location="cpu", weights_only=True), Path(here) / path.name)
        loaded = pyvene.IntervenableModel.load(here, model)
    for key, intervention in loaded.interventions.items():
        if isinstance(intervention, SubspaceIntervention):  # of those with a constant source, pyvene loads nothing else
            intervention.load_state_dict(state_of(folder, key))
        intervention.to(next(model.parameters()).device)
    return loaded


def state_of(folder: str | Path, key: str) -> dict[str, Any]:
    """What pyvene's `save` or `save_intervention` wrote of one intervention, on the CPU. Raises RoadError where it is not there."""
    path = Path(folder) / f"intkey_{key}.bin"
    if not path.is_file():
        raise RoadError(f"{folder} has no {path.name}: expected what save or save_intervention of the same interventions wrote")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def register(model: nn.Module) -> None:
    """Tell pyvene where this model's type keeps its layers, where it does not know."""
    if type(model) in pyvene.type_to_module_mapping:
        return
    path, _ = find_layers(model)
    modules = {}
    for component in _COMPONENTS:
        inside = site_path(model, 0, component).removeprefix(f"{path}.0")
        modules[component] = (f"{path}[%s]{inside}", "register_forward_hook")
    pyvene.type_to_module_mapping[type(model)] = modules
    pyvene.type_to_dimension_mapping[type(model)] = dict.fromkeys(_COMPONENTS, ("hidden_size",))
