"""The config.json of a model that pyvene saved, checked before pyvene sees any of it."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roadint.errors import RoadError, did_you_mean, first_line, listing, quoted
from roadint.files.paths import is_file
from roadint.interventions.pyvene.patches import pyvene
from roadint.interventions.registry import kinds as registered

_FIELDS = pyvene.RepresentationConfig._fields
_UNITS = ("pos", "h", "h.pos", "t")
_COUNTS = ("max_number_of_units", "low_rank_dimension", "group_key", "moe_key", "latent_dim")


@dataclass(frozen=True)
class SavedIntervention:
    """An intervention in the configuration.

    Attributes:
        kind: The class.
        representation: pyvene's RepresentationConfig.
        key: The intervention's name in pyvene's model and files.
        constant: True where the source is constant.
        width: pyvene's interchange dim; None where the configuration has none.
    """

    kind: type
    representation: Any
    key: str
    constant: Any
    width: Any


def read_saved_config(folder: Path, classes: Sequence[type]) -> tuple[list[SavedIntervention], str]:
    """The interventions that a folder holds, and pyvene's mode.

    Args:
        folder: The folder that `IntervenableModel.save` wrote.
        classes: Intervention classes that the folder may name beside pyvene's and roadint's.

    Raises:
        RoadError: where it is no such folder, or names any other class.
    """
    config = _read_json(folder)
    known = _by_name([*vars(pyvene).values(), *registered().values()])
    kinds = [_class_of(name, known, classes) for name in _listed(config, "intervention_types")]
    representations = [_representation(fields) for fields in _listed(config, "representations")]
    if not kinds or len(kinds) != len(representations):
        raise RoadError(
            f"{folder} has {len(kinds)} intervention types for {len(representations)} places: "
            "expected one each"
        )
    mode = config.get("mode", "parallel")
    if mode not in ("parallel", "serial"):
        raise RoadError(f"{folder} has mode {quoted(mode)}: expected 'parallel' or 'serial'")
    saved = zip(
        kinds,
        representations,
        _keys(representations),
        _optional_list(config, "intervention_constant_sources", len(kinds)),
        _optional_list(config, "intervention_dimensions", len(kinds)),
        strict=True,
    )
    return [SavedIntervention(*fields) for fields in saved], mode


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not is_file(path):
        raise RoadError(
            f"{quoted(str(folder))} holds no pyvene model: "
            "expected a config.json, as IntervenableModel.save writes it"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RoadError(
            f"{path} is truncated or no JSON ({first_line(error)}): copy it again"
        ) from None
    if not isinstance(config, dict):
        raise RoadError(
            f"{path} is {quoted(config)}: expected a mapping, as IntervenableModel.save writes it"
        )
    return config


def _listed(config: Mapping[str, Any], name: str) -> list[Any]:
    listed = config.get(name)
    if not isinstance(listed, list):
        raise RoadError(
            f"config.json has {name} {quoted(listed)}: "
            "expected a list, as IntervenableModel.save writes it"
        )
    return listed


def _optional_list(config: Mapping[str, Any], name: str, count: int) -> list[Any]:
    if not config.get(name):
        return [None] * count
    listed = _listed(config, name)
    if len(listed) < count:
        raise RoadError(f"config.json has {len(listed)} {name}: expected {count}")
    return listed[:count]


def _by_name(values: Iterable[Any]) -> dict[str, type]:
    """Intervention classes by package and class name, which no version of pyvene changes."""
    kinds = [
        value
        for value in values
        if isinstance(value, type) and issubclass(value, pyvene.Intervention)
    ]
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}": kind for kind in kinds}


def _class_of(text: Any, known: Mapping[str, type], classes: Sequence[type]) -> type:
    """The class that "<class 'pyvene.models.interventions.VanillaIntervention'>" means."""
    if not isinstance(text, str):
        raise RoadError(
            f"config.json names the intervention type {quoted(text)}: "
            "expected text such as \"<class '…'>\""
        )
    path = text.removeprefix("<class '").removesuffix("'>")
    package, name = path.partition(".")[0], path.rpartition(".")[2]
    if f"{package}.{name}" in known:
        return known[f"{package}.{name}"]
    of_caller = [kind for kind in classes if path == f"{kind.__module__}.{kind.__qualname__}"]
    of_caller = of_caller or [kind for kind in classes if name == kind.__name__]
    if len(of_caller) != 1:
        names = sorted({key.rpartition(".")[2] for key in known})
        raise RoadError(
            f"config.json names the intervention type {quoted(path)}, which is not known and "
            f"therefore not imported: expected one of {listing(names)}{did_you_mean(name, names)}; "
            "give a class of your own as classes=[…]"
        )
    return of_caller[0]


def _representation(values: Any) -> Any:
    """One of pyvene's representations, its fields checked."""
    if not isinstance(values, list) or len(values) > len(_FIELDS):
        raise RoadError(
            f"config.json has the representation {quoted(values)}: "
            f"expected a list of at most {len(_FIELDS)} fields"
        )
    fields = {
        **pyvene.RepresentationConfig._field_defaults,
        **dict(zip(_FIELDS, values, strict=False)),
    }
    link = fields["intervention_link_key"]
    fits: dict[str, bool] = {
        "layer": _is_count(fields["layer"]),
        "component": isinstance(fields["component"], str) and "__" not in fields["component"],
        "unit": fields["unit"] in _UNITS,
        "intervention_type": fields["intervention_type"] is None,
        "intervention": fields["intervention"] is None,
        "subspace_partition": _is_partition(fields["subspace_partition"]),
        "intervention_link_key": link is None or isinstance(link, (int, str)),
        "source_representation": fields["source_representation"] is None,
        "hidden_source_representation": fields["hidden_source_representation"]
        in (None, True, False),
        **{name: fields[name] is None or _is_count(fields[name]) for name in _COUNTS},
    }
    for name, fitting in fits.items():
        if not fitting:
            raise RoadError(
                f"config.json has {name} {quoted(fields[name])} in a representation: "
                "not what IntervenableModel.save writes"
            )
    return pyvene.RepresentationConfig(**fields)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _is_partition(value: Any) -> bool:
    """pyvene's are lists of numbers; roadint also takes the text of a subspace."""
    if value is None:
        return True
    return isinstance(value, list) and all(
        isinstance(part, str) or (isinstance(part, list) and all(map(_is_count, part)))
        for part in value
    )


def _keys(representations: Sequence[Any]) -> list[str]:
    """The names of interventions in pyvene's model, as its `_get_representation_key` makes them.

    Interventions at the same site are numbered.
    """
    keys: list[str] = []
    counts: Counter[str] = Counter()
    for part in representations:
        site = f"layer_{part.layer}_comp_{part.component}"
        if "." in part.component:
            site = f"comp_{part.component.replace('.', '_')}"
        name = f"{site}_unit_{part.unit.replace('.', '_')}_nunit_{part.max_number_of_units}"
        keys.append(f"{name}#{counts[name]}")
        counts[name] += 1
    return keys
