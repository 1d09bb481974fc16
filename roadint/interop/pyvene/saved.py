"""Loading folders that pyvene saved, without running any code of theirs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roadint.errors import RoadError, first_line, listing, quoted
from roadint.files.paths import is_file, path_of
from roadint.interop.pyvene.saved_config import SavedIntervention, read_saved_config
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.pyvene.patches import get_dimension_by_component, pyvene
from roadint.interventions.pyvene.placing import register_model

_MOST_UNITS, _MOST_DIMS = 8192, 1 << 24


def load(
    folder: str | Path,
    model: nn.Module,
    *,
    classes: Sequence[type] = (),
    include_model: bool | None = None,
) -> Any:
    """What `pv.IntervenableModel.save` wrote, on whatever device the model is.

    pyvene's `save` needs nothing of ours: roadint's interventions write their arguments beside
    their values, so that dtype, variant, partition and basis come back. Model types that pyvene
    does not know are registered. Nothing that the folder names is imported or called, unlike in
    pyvene's own `load`.

    Args:
        folder: The folder that `save` wrote.
        model: The base model.
        classes: Further intervention classes that the folder may name, beside roadint's and
            pyvene's.
        include_model: Whether the model takes its own values that `save(…, include_model=True)`
            wrote; to be said where there are any.

    Returns:
        A `pv.IntervenableModel`.

    Raises:
        RoadError: where the folder holds no such model, or it does not fit.
    """
    path = path_of("folder", folder)
    weights = path / "pytorch_model.bin"
    if include_model is None and is_file(weights) and read_tensors(weights):
        raise RoadError(
            f"{weights} has values of the base model too: expected include_model=True to take "
            "them, or False to leave them"
        )
    saved, mode = read_saved_config(path, classes)
    register_model(model)
    try:
        loaded = _loaded(path, model, saved, mode)
    except RoadError:
        raise
    except Exception as error:  # whatever pyvene's classes raise for what does not fit them
        raise RoadError(
            f"{folder} does not fit this model or pyvene "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if include_model:
        load_model_values(model, weights)
    device = next(model.parameters()).device
    for intervention in loaded.interventions.values():
        if not isinstance(intervention, SubspaceIntervention):  # those are on their layer's device
            intervention.to(device)
    return loaded


def _loaded(folder: Path, model: nn.Module, saved: Sequence[SavedIntervention], mode: str) -> Any:
    for part in saved:
        _check_sizes(folder, model, part)
    config = pyvene.IntervenableConfig(
        [part.representation for part in saved],
        intervention_types=[part.kind for part in saved],
        mode=mode,
    )
    loaded = pyvene.IntervenableModel(config, model)
    for (key, intervention), part in zip(loaded.interventions.items(), saved, strict=True):
        _fill(folder, key, intervention, part)
    return loaded


def _fill(folder: Path, key: str, intervention: Any, saved: SavedIntervention) -> None:
    """Load an intervention's values, and attributes that pyvene saves of its own classes."""
    if isinstance(intervention, SubspaceIntervention):
        intervention.load_state_dict(state_of(folder, key))
        return
    intervention.is_source_constant = saved.constant is True
    if isinstance(saved.width, int):
        intervention.set_interchange_dim(saved.width)
    trainable = isinstance(intervention, pyvene.TrainableIntervention)
    if not trainable and not _file_of(folder, key).is_file():
        return
    state = state_of(folder, key)
    if saved.constant is True and "source_representation" in state:
        intervention.source_representation = None
        del intervention.source_representation
        intervention.register_buffer("source_representation", state.pop("source_representation"))
    if trainable:
        intervention.load_state_dict(state)


def _check_sizes(folder: Path, model: nn.Module, saved: SavedIntervention) -> None:
    """Check, before memory is allocated, that no more numbers are needed than were saved."""
    representation = saved.representation
    for part in representation.subspace_partition or ():
        if not isinstance(part, str) and any(number > _MOST_DIMS for number in part):
            raise RoadError(
                f"config.json has the subspace {quoted(part)}: "
                "expected dims of the model's hidden states"
            )
    units = representation.max_number_of_units
    if not units or units > _MOST_UNITS:
        raise RoadError(
            f"config.json has max_number_of_units {quoted(units)}: expected 1 to {_MOST_UNITS}"
        )
    is_trainable = issubclass(saved.kind, pyvene.TrainableIntervention)
    if issubclass(saved.kind, SubspaceIntervention) or not is_trainable:
        return
    component = representation.component
    width = units * (get_dimension_by_component(type(model), model.config, component) or 1)
    columns = representation.low_rank_dimension or representation.latent_dim
    columns = columns or (width if "Rotated" in saved.kind.__name__ else 1)
    stored = sum(value.numel() for value in state_of(folder, saved.key).values())
    if width * columns > stored:
        raise RoadError(
            f"config.json asks for {width} by {columns} values of {saved.key}, "
            f"of which {stored} are there: save it again"
        )


def state_of(folder: str | Path, key: str) -> dict[str, Tensor]:
    """What pyvene's `save` or `save_intervention` wrote of one intervention, on the CPU.

    Args:
        folder: The folder that was saved.
        key: The intervention's name in pyvene.

    Raises:
        RoadError: where it is not there, or damaged.
    """
    path = _file_of(folder, key)
    if not path.is_file():
        raise RoadError(
            f"{folder} has no {path.name}: "
            "expected what save or save_intervention of the same interventions wrote"
        )
    return read_tensors(path)


def _file_of(folder: str | Path, key: str) -> Path:
    return Path(folder) / f"intkey_{key}.bin"


def load_model_values(model: nn.Module, path: Path) -> None:
    """Put values of the base model that were saved beside interventions into it.

    Raises:
        RoadError: where there are none, or they are another model's.
    """
    saved, own = read_tensors(path), model.state_dict()
    other = [name for name in saved if name not in own or own[name].shape != saved[name].shape]
    if other:
        raise RoadError(f"{path} has values that this model has not: {listing(other)}")
    model.load_state_dict(saved, strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file of named tensors that torch wrote, on the CPU; reading it can run nothing.

    Raises:
        RoadError: where it is any other file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a truncated, altered or foreign file makes of the reader
        raise RoadError(
            f"{path} holds no tensors ({type(error).__name__}: {first_line(error)}): save it again"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in state.items()
    ):
        raise RoadError(f"{path} holds {quoted(state)}: expected tensors by name")
    return state
