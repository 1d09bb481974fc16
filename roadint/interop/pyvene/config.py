"""roadint's interventions as a plain pyvene configuration."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from roadint.architecture.layers import site_path
from roadint.architecture.properties import check_model, width_of
from roadint.engines.interventions import listed_interventions
from roadint.errors import RoadError
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.pyvene.patches import pyvene
from roadint.interventions.pyvene.placing import register_model


def pyvene_config(
    model: nn.Module, interventions: SubspaceIntervention | Sequence[SubspaceIntervention]
) -> Any:
    """The configuration of interventions, as `pv.IntervenableModel(config, model)` takes it.

    Interventions without a width get the model's, and a model type that pyvene does not know
    (Gemma 3, Qwen 3, …) is registered. Layers count from 0, as in pyvene; `unit_locations` give the
    positions.

    Args:
        model: The base model.
        interventions: One intervention, or a list.

    Returns:
        A `pv.IntervenableConfig`.

    Raises:
        RoadError: where there are none, or the model has no such layer, component or width.
    """
    check_model(model)
    listed = listed_interventions(interventions)
    if not listed:
        raise RoadError("no interventions given: expected at least one RoadIntervention")
    register_model(model)
    device = next(model.parameters()).device
    for intervention in listed:
        site_path(model, intervention.layer, intervention.component)  # the model has it
        intervention.bind(width_of(model)).to(device)
    representations = [
        {
            "layer": intervention.layer,
            "component": intervention.component,
            "intervention": intervention,
        }
        for intervention in listed
    ]
    return pyvene.IntervenableConfig(representations, model_type=type(model))
