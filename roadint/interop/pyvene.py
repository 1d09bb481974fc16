"""roadint's interventions as a plain pyvene configuration, and what pyvene saved, read back without running any of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roadint.architecture.layers import site_path
from roadint.architecture.properties import check_model, width_of
from roadint.errors import RoadError, did_you_mean, first_line, listing, quoted
from roadint.files.paths import is_file, path_of
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.pyvene.patches import get_dimension_by_component, pyvene
from roadint.interventions.pyvene.placing import register
from roadint.interventions.registry import kinds as registered
from roadint.model.roads import listed_interventions

__all__ = ["load", "pyvene_config", "read_tensors", "register", "state_of"]

_FIELDS = pyvene.RepresentationConfig._fields
_UNITS = ("pos", "h", "h.pos", "t")
_COUNTS = ("max_number_of_units", "low_rank_dimension", "group_key", "moe_key", "latent_dim")
_MOST_UNITS, _MOST_DIMS = 8192, 1 << 24


def pyvene_config(
    model: nn.Module, interventions: SubspaceIntervention | Sequence[SubspaceIntervention]
) -> Any:
    """The `pv.IntervenableConfig` of these interventions on this model, as `pv.IntervenableModel(config, model)` takes it.

    Interventions without a width get the model's, and a model type that pyvene does not know (Gemma 3, Qwen 3, …) is
    registered. Layers count from 0, as in pyvene. pyvene's `unit_locations` say the position there. Raises RoadError.
    """
    check_model(model)
    listed = listed_interventions(interventions)
    if not listed:
        raise RoadError("no interventions given: expected at least one RoadIntervention")
    register(model)
    representations = []
    for intervention in listed:
        site_path(
            model, intervention.layer, intervention.component
        )  # refuses what the model does not have
        intervention.bind(width_of(model)).to(next(model.parameters()).device)
        representations.append(
            {
                "layer": intervention.layer,
                "component": intervention.component,
                "intervention": intervention,
            }
        )
    return pyvene.IntervenableConfig(representations, model_type=type(model))


def load(folder: str | Path, model: nn.Module, *, classes: Sequence[type] = ()) -> Any:
    """What `pv.IntervenableModel.save` wrote, as an IntervenableModel, on whatever device the model is.

    pyvene's `save` needs nothing of ours: roadint's interventions write their arguments beside their values, so that dtype,
    variant, partition and basis come back. Model types that pyvene does not know are registered.

    classes: intervention classes of your own that the folder may name. Those of roadint and pyvene are known; nothing else that
    the folder names is imported or called, unlike in pyvene's own `load`. Raises RoadError where the folder holds no such model.
    """
    config = _read_config(path_of("folder", folder))
    known = _known([*vars(pyvene).values(), *registered().values()])
    kinds = [_class_of(name, known, classes) for name in _listed(config, "intervention_types")]
    representations = [_representation(each) for each in _listed(config, "representations")]
    if not kinds or len(kinds) != len(representations):
        raise RoadError(
            f"{folder} has {len(kinds)} intervention types for {len(representations)} places: expected one each"
        )
    if config.get("mode", "parallel") not in ("parallel", "serial"):
        raise RoadError(
            f"{folder} has mode {quoted(config['mode'])}: expected 'parallel' or 'serial'"
        )
    register(model)
    try:
        for kind, place, key in zip(kinds, representations, _keys(representations), strict=True):
            _check_sizes(Path(folder), model, kind, place, key)
        made = pyvene.IntervenableConfig(
            representations, intervention_types=kinds, mode=config.get("mode", "parallel")
        )
        loaded = pyvene.IntervenableModel(made, model)
        constant = config.get("intervention_constant_sources") or [False] * len(kinds)
        widths = config.get("intervention_dimensions") or [None] * len(kinds)
        for place, key in enumerate(loaded.interventions):
            _fill(folder, key, loaded.interventions[key], constant[place], widths[place])
    except RoadError:
        raise
    except (
        Exception
    ) as error:  # whatever pyvene's classes raise for fields and values that do not fit them
        raise RoadError(
            f"{folder} does not fit this model or pyvene ({type(error).__name__}: {first_line(error)})"
        ) from error
    for intervention in loaded.interventions.values():
        if not isinstance(intervention, SubspaceIntervention):  # those are where their layer is
            intervention.to(next(model.parameters()).device)
    return loaded


def _fill(folder: str | Path, key: str, intervention: Any, constant: Any, width: Any) -> None:
    """The values of one intervention, and what pyvene keeps of its own ones beside them."""
    if isinstance(intervention, SubspaceIntervention):
        intervention.load_state_dict(state_of(folder, key))
        return
    intervention.is_source_constant = constant is True
    if isinstance(width, int):
        intervention.set_interchange_dim(width)
    if not (Path(folder) / f"intkey_{key}.bin").is_file() and not isinstance(
        intervention, pyvene.TrainableIntervention
    ):
        return
    state = state_of(folder, key)
    if constant is True and "source_representation" in state:
        intervention.source_representation = None
        del intervention.source_representation
        intervention.register_buffer("source_representation", state.pop("source_representation"))
    if isinstance(intervention, pyvene.TrainableIntervention):
        intervention.load_state_dict(state)


def _read_config(folder: Path) -> dict[str, Any]:
    if not is_file(folder / "config.json"):
        raise RoadError(
            f"{quoted(str(folder))} holds no pyvene model: expected a config.json, as IntervenableModel.save writes it"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RoadError(
            f"{folder / 'config.json'} is truncated or no JSON ({first_line(error)}): copy it again"
        ) from None
    if not isinstance(config, dict):
        raise RoadError(
            f"{folder / 'config.json'} is {quoted(config)}: expected a mapping, as IntervenableModel.save writes it"
        )
    return config


def _listed(config: Mapping[str, Any], name: str) -> list[Any]:
    listed = config.get(name)
    if not isinstance(listed, list):
        raise RoadError(
            f"config.json has {name} {quoted(listed)}: expected a list, as IntervenableModel.save writes it"
        )
    return listed


def _known(classes: Sequence[Any]) -> dict[str, type]:
    """Intervention classes by the names that a configuration gives them: the package and the class, wherever a version kept it."""
    interventions = [
        each for each in classes if isinstance(each, type) and issubclass(each, pyvene.Intervention)
    ]
    return {f"{each.__module__.partition('.')[0]}.{each.__name__}": each for each in interventions}


def _class_of(text: Any, known: Mapping[str, type], classes: Sequence[type]) -> type:
    """The class of "<class 'pyvene.models.interventions.VanillaIntervention'>", of those known; nothing is imported."""
    if not isinstance(text, str):
        raise RoadError(
            f"config.json names the intervention type {quoted(text)}: expected text such as \"<class '…'>\""
        )
    path = text.removeprefix("<class '").removesuffix("'>")
    package, _, name = path.partition(".")[0], None, path.rpartition(".")[2]
    given = [each for each in classes if path == f"{each.__module__}.{each.__qualname__}"]
    given = given or [each for each in classes if name == each.__name__]
    own = known.get(f"{package}.{name}")
    if own is None and len(given) != 1:
        names = sorted({each.rpartition(".")[2] for each in known})
        raise RoadError(
            f"config.json names the intervention type {quoted(path)}, which is not known and therefore not imported: expected one "
            f"of {listing(names)}{did_you_mean(name, names)}; give a class of your own as classes=[…]"
        )
    return given[0] if own is None else own


def _representation(given: Any) -> Any:
    """One of pyvene's representations, its fields checked."""
    if not isinstance(given, list) or len(given) > len(_FIELDS):
        raise RoadError(
            f"config.json has the representation {quoted(given)}: expected a list of at most {len(_FIELDS)} fields"
        )
    fields = {
        **pyvene.RepresentationConfig._field_defaults,
        **dict(zip(_FIELDS, given, strict=False)),
    }
    expected: dict[str, bool] = {
        "layer": _is_count(fields["layer"], least=0),
        "component": isinstance(fields["component"], str) and "__" not in fields["component"],
        "unit": fields["unit"] in _UNITS,
        "intervention_type": fields["intervention_type"] is None,
        "intervention": fields["intervention"] is None,
        "subspace_partition": _is_partition(fields["subspace_partition"]),
        "intervention_link_key": fields["intervention_link_key"] is None
        or isinstance(fields["intervention_link_key"], (int, str)),
        "source_representation": fields["source_representation"] is None,
        "hidden_source_representation": fields["hidden_source_representation"]
        in (None, True, False),
        **{name: fields[name] is None or _is_count(fields[name], least=0) for name in _COUNTS},
    }
    for name, fits in expected.items():
        if not fits:
            raise RoadError(
                f"config.json has {name} {quoted(fields[name])} in a representation: not what IntervenableModel.save writes"
            )
    return pyvene.RepresentationConfig(**fields)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31


def _is_partition(value: Any) -> bool:
    """pyvene's: lists of numbers; roadint also takes the text of a subspace."""
    if value is None:
        return True
    return isinstance(value, list) and all(
        isinstance(part, str)
        or (isinstance(part, list) and all(_is_count(number, least=0) for number in part))
        for part in value
    )


def _keys(representations: Sequence[Any]) -> list[str]:
    """What pyvene calls them, as in `BaseModel._get_representation_key`: sites that are alike are numbered."""
    found: list[str] = []
    counts: dict[str, int] = {}
    for each in representations:
        place = f"layer_{each.layer}_comp_{each.component}"
        if "." in each.component:
            place = f"comp_{each.component.replace('.', '_')}"
        name = f"{place}_unit_{each.unit.replace('.', '_')}_nunit_{each.max_number_of_units}"
        found.append(f"{name}#{counts.setdefault(name, 0)}")
        counts[name] += 1
    return found


def _check_sizes(folder: Path, model: nn.Module, kind: type, place: Any, key: str) -> None:
    """Raises RoadError where a representation asks for more numbers than the values beside it have."""
    for part in place.subspace_partition or ():
        if not isinstance(part, str) and any(number > _MOST_DIMS for number in part):
            raise RoadError(
                f"config.json has the subspace {quoted(part)}: expected dims of the model's hidden states"
            )
    units = place.max_number_of_units
    if not units or units > _MOST_UNITS:
        raise RoadError(
            f"config.json has max_number_of_units {quoted(units)}: expected 1 to {_MOST_UNITS}"
        )
    if issubclass(kind, SubspaceIntervention) or not issubclass(kind, pyvene.TrainableIntervention):
        return
    width = units * (get_dimension_by_component(type(model), model.config, place.component) or 1)
    other = (
        place.low_rank_dimension or place.latent_dim or (width if "Rotated" in kind.__name__ else 1)
    )
    stored = sum(value.numel() for value in state_of(folder, key).values())
    if width * other > stored:
        raise RoadError(
            f"config.json asks for {width} by {other} values of {key}, of which {stored} are there: save it again"
        )


def state_of(folder: str | Path, key: str) -> dict[str, Any]:
    """What pyvene's `save` or `save_intervention` wrote of one intervention, on the CPU. Raises RoadError where it is not there."""
    path = Path(folder) / f"intkey_{key}.bin"
    if not path.is_file():
        raise RoadError(
            f"{folder} has no {path.name}: expected what save or save_intervention of the same interventions wrote"
        )
    return read_tensors(path)


def read_tensors(path: Path) -> dict[str, Any]:
    """A file of named tensors that torch wrote, on the CPU; it can run nothing. Raises RoadError for any other file."""
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
