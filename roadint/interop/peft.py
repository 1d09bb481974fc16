"""PEFT's RoAd checkpoints, in and out: `load(road, folder)` and `export(road, folder)`. Neither needs PEFT.

PEFT keeps θ and α of a layer in one row of numbers: RoAd1 by block, RoAd2 by output channel, RoAd4 by group, the entries on the
diagonals before the others.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import layout_of
from roadint.errors import RoadError, first_line, listing, quoted
from roadint.files.atomic import write_pair
from roadint.files.paths import is_file, make_folder, path_of
from roadint.files.readers import read_header, read_json
from roadint.model.checkpoint import folder_of
from roadint.model.schema import anything, either, fields, listed, one_of, text, whole
from roadint.rotation.rotation import Variant, parameter_shape

if TYPE_CHECKING:
    from roadint.model.roads import Roads

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

_NULL, _NAMES = one_of(None), listed(text(most=1000), 100_000)
_SETTINGS = {
    "variant": one_of("road_1", "road_2", "road_4"),
    "group_size": whole(2, 1 << 24),
    "init_weights": one_of(True, False),  # of layers that have no values yet: here all have
    "target_modules": either(_NULL, text(most=100_000), _NAMES),
    "modules_to_save": either(_NULL, _NAMES),
    "task_type": either(_NULL, text(most=100)),
    "base_model_name_or_path": either(_NULL, text()),
    "revision": either(_NULL, text(most=500)),
    **dict.fromkeys(
        ("auto_mapping", "peft_version", "inference_mode"), anything
    ),  # say nothing of what is computed
}
_CONFIG = fields({"peft_type": one_of("ROAD")}, _SETTINGS, open_to_others=True)
# The modules that PEFT adds to modules_to_save by itself.
_OF_TASKS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
_FLOATS = ("F16", "BF16", "F32", "F64")


def load(road: "Roads", name_or_path: str | Path, name: str = "road") -> RoadAdapter:
    """Put a PEFT RoAd checkpoint, from a folder or the hub, on a RoadModel as the adapter `name`.

    Every variant and group_size; what `modules_to_save` kept becomes the adapter's heads. Logits are PEFT's.
    Raises RoadError, and changes nothing, where it is no RoAd, is damaged, or does not fit the model.
    """
    _check_road(road)
    folder = folder_of(name_or_path, (CONFIG, TENSORS))
    config = _read_config(folder)
    variant, group = (
        config.get("variant", "road_1"),
        config.get("group_size", 64),
    )  # PEFT's own defaults
    sizes = _read_sizes(folder)
    paths = {key.removesuffix(".road_theta") for key in sizes if key.endswith(".road_theta")}
    if not paths:
        raise RoadError(
            f"{folder} holds no RoAd layer: expected {_PREFIX}<module>.road_theta in {TENSORS}"
        )
    layout = layout_of(road.model, paths)
    _check_targets(road.model, config, layout.paths, folder)
    for path, width in zip(layout.paths, layout.widths, strict=True):
        size = (math.prod(parameter_shape(variant, width // 2)),)
        for key in (f"{path}.road_theta", f"{path}.road_alpha"):
            if sizes.get(key) != size:
                raise RoadError(
                    f"{folder}: {key} is {sizes.get(key, 'missing')}: expected {size[0]} numbers for {variant}"
                )
    rest = {
        key: size for key, size in sizes.items() if not key.endswith((".road_theta", ".road_alpha"))
    }
    heads = _heads(road.model, config, rest, folder)
    _check_rest(sizes, layout.paths, heads, folder)
    adapter = RoadAdapter(name, layout, variant=variant, pairing=group, heads=heads)
    tensors = _read_tensors(folder)
    with torch.no_grad():
        for path in layout.paths:
            for own, kind in zip(adapter.of(path), ("theta", "alpha"), strict=True):
                own.copy_(from_peft(tensors[f"{path}.road_{kind}"].float(), variant, group))
        for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
            for key, value in head.state_dict().items():
                value.copy_(tensors[f"{path}.{key}"])
    for key, kept in adapter.values().items():
        if not bool(kept.isfinite().all()):
            raise RoadError(
                f"{folder}: {key} of the adapter is not finite in float32: train it again"
            )
    road.attach([adapter])
    return adapter


def base_of(name_or_path: str | Path) -> str:
    """The base model that a PEFT checkpoint names; empty where it names none.

    Raises RoadError where it is no checkpoint, or is for another revision of the model than the hub's newest.
    """
    config = _read_config(folder_of(name_or_path, (CONFIG, TENSORS)))
    if config.get("revision") not in (None, "", "main"):
        raise RoadError(
            f"{name_or_path} is for revision {quoted(config['revision'])} of {quoted(config.get('base_model_name_or_path'))}: "
            "download that one and name its folder as the model"
        )
    return config.get("base_model_name_or_path") or ""


def export(road: "Roads", folder: str | Path, name: str | None = None) -> int:
    """Write one adapter as a PEFT checkpoint, for `PeftModel.from_pretrained(model, folder)`; returns its size in bytes.

    name: which one; the only one by default. Raises RoadError, and writes nothing, for what PEFT has no form for: hidden-state
    interventions, a LoRA beside the rotations, Conv1D and embeddings, pairs by halves of layers of several widths; and where the
    folder holds an adapter of other targets, variant or base model.
    """
    _check_road(road)
    if name is None and len(road.adapters) == 1:
        name = next(iter(road.adapters))
    if not isinstance(name, str) or name not in road.adapters:
        raise RoadError(
            f"no adapter {quoted(name)} to export: expected one of {listing(road.adapters) or 'none'}"
        )
    adapter = road.adapters[name]
    if adapter.lora_rank:
        raise RoadError(
            f"{quoted(name)} has a LoRA beside its rotations, for which PEFT's RoAd has no form: merge it, or save_pretrained"
        )
    for path in adapter.layout.paths:
        module = road.model.get_submodule(path)
        if not isinstance(module, nn.Linear):
            raise RoadError(
                f"{path} is a {type(module).__name__}, which PEFT's RoAd can't turn: merge it, or save_pretrained"
            )
    if len(set(adapter.groups)) > 1:
        raise RoadError(
            f"{quoted(name)} pairs dims at distances {sorted(set(adapter.groups))}: PEFT has one for all layers"
        )
    tensors = {}
    for path in adapter.layout.paths:
        for kind, value in zip(("theta", "alpha"), adapter.held_values(path), strict=True):
            tensors[f"{_PREFIX}{path}.road_{kind}"] = (
                as_peft(value, adapter.variant, adapter.groups[0]).cpu().contiguous()
            )
    for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
        tensors |= {
            f"{_PREFIX}{path}.{key}": value.cpu().contiguous()
            for key, value in head.state_dict().items()
        }
    config = {
        "peft_type": "ROAD",
        "base_model_name_or_path": str(getattr(road.model, "name_or_path", "")) or None,
        "inference_mode": True,
        "init_weights": True,
        "variant": adapter.variant,
        "group_size": adapter.groups[0],
        "target_modules": list(adapter.layout.paths),
        "modules_to_save": list(adapter.head_paths) or None,
        "task_type": None,
    }
    _check_names(road.model, adapter)
    folder = path_of("folder", folder)
    said = json.dumps(config, indent=2) + "\n"
    payload = safetensors.torch.save(tensors, {"format": "pt"})
    if is_file(folder / CONFIG) and (folder / CONFIG).read_bytes() != said.encode():
        # PEFT could not tell new tensors beside the old config, as a kill would leave them, from a whole checkpoint.
        raise RoadError(
            f"{folder} holds another adapter, whose {CONFIG} is not this one's: expected a new folder"
        )
    make_folder(folder)
    write_pair(folder / TENSORS, payload, folder / CONFIG, said)
    return len(payload) + len(said)


def _check_road(road: Any) -> None:
    if not hasattr(road, "adapters"):
        raise RoadError(
            f"{quoted(road)} is no RoadModel: expected roadint.RoadModel(model), or what add_linear_road returns"
        )


def as_peft(values: Tensor, variant: Variant, group: int) -> Tensor:
    """θ or α of a layer, [blocks, …], in PEFT's order: 1-D."""
    if variant == "road_1":
        return values
    if variant == "road_2":
        return _by_channel(values, group).flatten()
    diagonal, across = (
        values.diagonal(dim1=1, dim2=2),
        torch.stack([values[:, 0, 1], values[:, 1, 0]], -1),
    )
    return torch.cat([_by_channel(diagonal, group), _by_channel(across, group)], dim=1).flatten()


def from_peft(values: Tensor, variant: Variant, group: int) -> Tensor:
    """The inverse of `as_peft`: [blocks], [blocks, 2] or [blocks, 2, 2]."""
    if variant == "road_1":
        return values
    if variant == "road_2":
        return _by_block(values.reshape(-1, group))
    diagonal, across = (_by_block(half) for half in values.reshape(-1, 2, group).unbind(1))
    found = torch.stack([diagonal[:, 0], across[:, 0], across[:, 1], diagonal[:, 1]], -1)
    return found.reshape(parameter_shape(variant, len(found)))


def _by_channel(rows: Tensor, group: int) -> Tensor:
    """[blocks, 2], one number a row of each block, as [groups, group]."""
    return rows.reshape(-1, group // 2, 2).transpose(1, 2).flatten(1)


def _by_block(channels: Tensor) -> Tensor:
    return channels.reshape(len(channels), 2, -1).transpose(1, 2).reshape(-1, 2)


def _heads(
    model: nn.Module, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], folder: Path
) -> dict[str, nn.Module]:
    """The model's modules that `modules_to_save` names and the checkpoint has."""
    found: dict[str, nn.Module] = {}
    named = config.get("modules_to_save") or []
    for path, module in model.named_modules():
        if not _saved_by((*named, *_OF_TASKS.get(config.get("task_type") or "", ())), path):
            continue
        wrong = [
            key
            for key, own in module.state_dict().items()
            if sizes.get(f"{path}.{key}") != tuple(own.shape)
        ]
        if wrong and (_saved_by(named, path) or any(key.startswith(f"{path}.") for key in sizes)):
            raise RoadError(
                f"{folder}: {path}.{wrong[0]} is missing or of another shape than the model's: load its own class of model"
            )
        if not wrong and module.state_dict():
            found[path] = module
    for path in found:
        if any(other.startswith(f"{path}.") for other in found):
            raise RoadError(
                f"{folder}: modules_to_save names {path} and modules inside it: expected one of them"
            )
    return found


def _saved_by(names: Iterable[str], path: str) -> bool:
    """Whether modules_to_save means a module: PEFT takes a name for the end of a path, in the middle of a word too."""
    return any(f"{_PREFIX}{path}".endswith(name) for name in names) and bool(path)


def _check_names(model: nn.Module, adapter: RoadAdapter) -> None:
    """Raises RoadError where PEFT would take the names of the adapter's modules for others too."""
    config = {
        "target_modules": list(adapter.layout.paths),
        "modules_to_save": list(adapter.head_paths),
    }
    _check_targets(model, config, adapter.layout.paths, adapter.name)
    for path, _ in model.named_modules():
        if _saved_by(adapter.head_paths, path) and path not in adapter.head_paths:
            raise RoadError(
                f"PEFT would take the head of {adapter.name!r} for {path} too, which ends alike: save_pretrained keeps it"
            )


def _check_targets(
    model: nn.Module, config: Mapping[str, Any], paths: Iterable[str], what: object
) -> None:
    """Raises RoadError where the layers with values are others than those that PEFT would put the adapter on."""
    names = config.get("target_modules")
    if not isinstance(names, list):
        return  # a regular expression, or PEFT's choice for the architecture: what has values counts
    wanted, exact = tuple(f".{name}" for name in names), set(names)
    saved = [name.split(".") for name in config.get("modules_to_save") or []]

    def inside_saved(path: str) -> bool:
        parts = path.split(".")
        return any(parts[at : at + len(name)] == name for name in saved for at in range(len(parts)))

    linear = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not inside_saved(path)
    ]
    targeted = {path for path in linear if path in exact or path.endswith(wanted)}
    for path in sorted(targeted ^ set(paths)):
        said = "has no values for it" if path in targeted else "does not name it in target_modules"
        raise RoadError(
            f"{what}: {path} is a layer of the adapter in PEFT or in the checkpoint alone: the other {said}"
        )


def _check_rest(
    sizes: Iterable[str], paths: Iterable[str], heads: Iterable[str], folder: Path
) -> None:
    """Raises RoadError for a tensor that nothing takes."""
    known = {f"{path}.road_{kind}" for path in paths for kind in ("theta", "alpha")}
    inside = tuple(f"{path}." for path in heads)
    for key in sizes:
        if key not in known and not key.startswith(inside):
            raise RoadError(
                f"{folder} holds {quoted(key)}, which this model has no place for: load its own class of model"
            )


def _read_config(folder: Path) -> dict[str, Any]:
    """The config, checked; settings that a later PEFT may add are refused where they say anything."""
    if not (folder / CONFIG).is_file():
        raise RoadError(f"{folder} is no PEFT checkpoint: expected {CONFIG} and {TENSORS}")
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if isinstance(kind, str) and kind != "ROAD":
        raise RoadError(
            f"{folder} is a PEFT {quoted(kind)[1:-1]} checkpoint: expected peft_type ROAD; keep using PEFT for it"
        )
    _CONFIG(config, str(folder / CONFIG))
    for name, value in config.items():
        if name not in ("peft_type", *_SETTINGS) and value not in (None, False, "", [], {}):
            raise RoadError(
                f"{folder / CONFIG} has {quoted(name)}: {quoted(value)}, which is no setting of RoAd that roadint knows"
            )
    group = config.get("group_size", 64)
    if group % 2:
        raise RoadError(f"{folder / CONFIG}: group_size is {group}: expected an even number")
    return config  # type: ignore[no-any-return]


def _read_sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors, by their names in the base model; their values are not read."""
    try:
        with (folder / TENSORS).open("rb") as file:
            header = read_header(file, os.fstat(file.fileno()).st_size, TENSORS)
    except RoadError as error:
        raise RoadError(f"{folder} is damaged: {error}") from None
    except OSError as error:
        raise RoadError(
            f"{folder} is no PEFT checkpoint, or damaged ({first_line(error)}): expected {CONFIG} and {TENSORS}"
        ) from None
    for key, (dtype, _) in header.items():
        allowed = (
            _FLOATS
            if key.endswith((".road_theta", ".road_alpha"))
            else (*_FLOATS, "I64", "I32", "BOOL", "U8")
        )
        if dtype not in allowed:
            raise RoadError(
                f"{folder}: {quoted(key)} is {dtype}: expected one of {listing(allowed)}"
            )
    sizes = {key.removeprefix(_PREFIX): shape for key, (_, shape) in header.items()}
    if len(sizes) < len(header):
        raise RoadError(
            f"{folder} holds tensors twice, with {_PREFIX} and without: expected each once"
        )
    return sizes


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors by their names in the base model."""
    try:
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RoadError(
            f"{folder} is damaged ({first_line(error)}): copy the checkpoint again"
        ) from None
    return {key.removeprefix(_PREFIX): value for key, value in tensors.items()}
