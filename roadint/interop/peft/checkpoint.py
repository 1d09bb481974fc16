"""Loading adapters from PEFT's RoAd checkpoints, and exporting them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import Layout, layout_of
from roadint.architecture.layers import uncompiled
from roadint.checkpoint.reading import folder_of
from roadint.checkpoint.writing import apart
from roadint.errors import RoadError, listing, quoted
from roadint.files.atomic import write_pair, write_whole
from roadint.files.paths import is_file, make_folder, path_of, writing_to
from roadint.interop.peft.files import (
    CONFIG,
    NOTES,
    PREFIX,
    TENSORS,
    VALUES,
    read_config,
    read_notes,
    read_shapes,
    read_tensors,
)
from roadint.interop.peft.modules import check_names, check_taken, check_targets, saved_modules
from roadint.interop.peft.values import as_peft, from_peft
from roadint.model.road_model import RoadModel
from roadint.rotation.rotation import Variant, parameter_shape


def load(road: RoadModel, name_or_path: str | Path, name: str | None = None) -> RoadAdapter:
    """Put a PEFT RoAd checkpoint on a RoadModel as an adapter, with the same logits as in PEFT.

    A model on which nothing was before also takes the template of prompts that `export` wrote.

    Args:
        road: The model.
        name_or_path: A folder or a hub id, with any variant and group_size.
        name: The adapter's name; by default the one that `export` wrote beside it, or "road".

    Returns:
        The adapter; its heads are what `modules_to_save` saved.

    Raises:
        RoadError: where it is no RoAd, is damaged, or does not fit the model; nothing has changed
            then.
    """
    _check_road(road)
    folder = folder_of(name_or_path, (CONFIG, TENSORS, NOTES))
    config, shapes, notes = read_config(folder), read_shapes(folder), read_notes(folder)
    variant, group = config.get("variant", "road_1"), config.get("group_size", 64)  # as in PEFT
    paths = {key.removesuffix(VALUES[0]) for key in shapes if key.endswith(VALUES[0])}
    if not paths:
        raise RoadError(
            f"{folder} holds no RoAd layer: expected {PREFIX}<module>{VALUES[0]} in {TENSORS}"
        )
    layout = layout_of(road.model, paths)
    check_targets(road.model, config, layout.paths, folder)
    _check_shapes(layout, variant, shapes, folder)
    rest = {key: shape for key, shape in shapes.items() if not key.endswith(VALUES)}
    heads = saved_modules(road.model, config, rest, folder)
    check_taken(shapes, layout.paths, heads, folder)
    called = notes.get("name", "road") if name is None else name
    adapter = RoadAdapter(called, layout, variant=variant, pairing=group, heads=heads)
    _fill(adapter, read_tensors(folder), group)
    for key, value in adapter.values().items():
        if not bool(value.isfinite().all()):
            raise RoadError(
                f"{folder}: {key} of the adapter is not finite in float32: train it again"
            )
    is_first = not road.names
    road.attach([adapter])
    if is_first:
        road.template = notes.get("template", road.template)
    return adapter


def base_of(name_or_path: str | Path) -> str:
    """The base model that a PEFT checkpoint names; empty where it names none.

    Args:
        name_or_path: A folder or a hub id.

    Raises:
        RoadError: where it is no checkpoint, or is for another revision of the model than the hub's
            newest.
    """
    config = read_config(folder_of(name_or_path, (CONFIG, TENSORS)))
    base = config.get("base_model_name_or_path")
    if config.get("revision") not in (None, "", "main"):
        raise RoadError(
            f"{name_or_path} is for revision {quoted(config['revision'])} of {quoted(base)}: "
            "download that one and name its folder as the model"
        )
    return base or ""


def export(road: RoadModel, folder: str | Path, name: str | None = None) -> int:
    """Write an adapter as a PEFT checkpoint, for `PeftModel.from_pretrained(model, folder)`.

    Args:
        road: The model.
        folder: A new folder, or one with an earlier export of the same adapter.
        name: The adapter's name; the only adapter by default.

    Returns:
        The size of the checkpoint in bytes.

    Raises:
        RoadError: for what PEFT has no form for: hidden-state interventions, a LoRA beside the
            rotations, Conv1D and embeddings, pairs by halves of layers of many widths; and where
            the folder holds an adapter of other targets, variant or base model. Nothing is written
            then.
    """
    _check_road(road)
    adapter = _adapter_of(road, name)
    _check_exportable(road.model, adapter)
    check_names(road.model, adapter)
    folder = path_of("folder", folder)
    config = json.dumps(_config(road.model, adapter), indent=2) + "\n"
    tensors = safetensors.torch.save(apart(_tensors(adapter)), {"format": "pt"})
    if is_file(folder / CONFIG) and (folder / CONFIG).read_bytes() != config.encode():
        # A kill would leave new tensors beside the old config, which PEFT would take for a whole
        # checkpoint.
        raise RoadError(
            f"{folder} holds another adapter, whose {CONFIG} is not this one's: "
            "expected a new folder"
        )
    make_folder(folder)
    notes = json.dumps({"name": adapter.name, "template": road.template}) + "\n"
    with writing_to(folder):
        write_whole(folder / NOTES, notes)
        write_pair(folder / TENSORS, tensors, folder / CONFIG, config)
    return len(tensors) + len(config) + len(notes)


def _check_road(road: object) -> None:
    if not isinstance(road, RoadModel):
        raise RoadError(
            f"{quoted(road)} is no RoadModel: "
            "expected roadint.RoadModel(model), or what add_linear_road returns"
        )


def _check_shapes(
    layout: Layout, variant: Variant, shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    for path, width in zip(layout.paths, layout.widths, strict=True):
        count = math.prod(parameter_shape(variant, width // 2))
        for key in (f"{path}{ending}" for ending in VALUES):
            if shapes.get(key) != (count,):
                raise RoadError(
                    f"{folder}: {key} is {shapes.get(key, 'missing')}: "
                    f"expected {count} numbers for {variant}"
                )


@torch.no_grad()
def _fill(adapter: RoadAdapter, tensors: Mapping[str, Tensor], group: int) -> None:
    for path in adapter.layout.paths:
        for parameter, ending in zip(adapter.of(path), VALUES, strict=True):
            values = tensors[f"{path}{ending}"].float()
            parameter.copy_(from_peft(values, adapter.variant, group))
    for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
        for key, value in head.state_dict().items():
            value.copy_(tensors[f"{path}.{key}"])


def _adapter_of(road: RoadModel, name: str | None) -> RoadAdapter:
    if name is None and len(road.adapters) == 1:
        name = next(iter(road.adapters))
    if name is None:
        raise RoadError(
            f"{len(road.adapters)} adapters to choose from: expected the name of one, of "
            f"{listing(road.adapters)}"
        )
    if not isinstance(name, str) or name not in road.adapters:
        raise RoadError(
            f"no adapter {quoted(name)} to export: expected one of {listing(road.adapters)}"
        )
    return road.adapters[name]


def _check_exportable(model: nn.Module, adapter: RoadAdapter) -> None:
    if adapter.lora_rank:
        raise RoadError(
            f"{quoted(adapter.name)} has a LoRA beside its rotations, for which PEFT's RoAd has "
            "no form: merge it, or save_pretrained"
        )
    for path in adapter.layout.paths:
        module = uncompiled(model.get_submodule(path))
        if not isinstance(module, nn.Linear):
            raise RoadError(
                f"{path} is a {type(module).__name__}, which PEFT's RoAd can't turn: "
                "merge it, or save_pretrained"
            )
    distances = sorted(set(adapter.groups))
    if len(distances) > 1:
        raise RoadError(
            f"{quoted(adapter.name)} pairs dims at distances {distances}: "
            "PEFT has one for all layers"
        )


def _config(model: nn.Module, adapter: RoadAdapter) -> dict[str, Any]:
    return {
        "peft_type": "ROAD",
        "base_model_name_or_path": str(getattr(model, "name_or_path", "")) or None,
        "inference_mode": True,
        "init_weights": True,
        "variant": adapter.variant,
        "group_size": adapter.groups[0],
        "target_modules": list(adapter.layout.paths),
        "modules_to_save": list(adapter.head_paths) or None,
        "task_type": None,
    }


def _tensors(adapter: RoadAdapter) -> dict[str, Tensor]:
    tensors = {}
    for path in adapter.layout.paths:
        for value, ending in zip(adapter.held_values(path), VALUES, strict=True):
            tensors[f"{path}{ending}"] = as_peft(value, adapter.variant, adapter.groups[0])
    for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
        tensors |= {f"{path}.{key}": value for key, value in head.state_dict().items()}
    return {f"{PREFIX}{key}": value.cpu().contiguous() for key, value in tensors.items()}
