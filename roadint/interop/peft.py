"""PEFT's RoAd checkpoints, in and out: `load(road, folder)` and `export(road, folder)`. Neither needs PEFT.

PEFT keeps θ and α of a layer in one row of numbers: RoAd1 by block, RoAd2 by output channel, RoAd4 by group, the entries on the
diagonals before the others.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from roadint.checkpoint import folder_of
from roadint.errors import RoadError, first_line, listing
from roadint.files import write_whole
from roadint.linear.road import LinearRoad
from roadint.linear.targets import layout_of
from roadint.rotation import Variant, check_variant, parameter_shape

if TYPE_CHECKING:
    from roadint.roads import Roads

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def load(road: "Roads", name_or_path: str | Path, name: str = "road") -> LinearRoad:
    """Put a PEFT RoAd checkpoint, from a folder or the hub, on a RoadModel as the adapter `name`.

    Every variant and group_size; what `modules_to_save` kept becomes the adapter's heads. Logits are PEFT's.
    Raises RoadError, and changes nothing, where it is no RoAd, is damaged, or does not fit the model.
    """
    folder = folder_of(name_or_path, (CONFIG, TENSORS))
    config, tensors = _read(folder)
    if config.get("peft_type") != "ROAD":
        raise RoadError(f"{folder} is a PEFT {config.get('peft_type')} checkpoint: expected peft_type ROAD; keep using PEFT for it")
    variant, group = check_variant(config["variant"]), int(config["group_size"])
    thetas = {key.removesuffix(".road_theta"): value for key, value in tensors.items() if key.endswith(".road_theta")}
    if not thetas:
        raise RoadError(f"{folder} holds no RoAd layer: expected {_PREFIX}<module>.road_theta in {TENSORS}")
    layout = layout_of(road.model, thetas)
    rest = {key: value for key, value in tensors.items() if not key.endswith((".road_theta", ".road_alpha"))}
    adapter = LinearRoad(name, layout, variant=variant, pairing=group, heads=_heads(road.model, config, rest, folder))
    with torch.no_grad():
        for path in layout.paths:
            for own, kind in zip(adapter.of(path), ("theta", "alpha"), strict=True):
                value = tensors.get(f"{path}.road_{kind}")
                if value is None or value.numel() != own.numel() or not bool(value.isfinite().all()):
                    raise RoadError(f"{folder}: {path}.road_{kind} is missing, not finite or of another size than {own.numel()}")
                own.copy_(from_peft(value.float(), variant, group))
        for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
            for key, value in head.state_dict().items():
                value.copy_(rest[f"{path}.{key}"])
    road.attach([adapter])
    return adapter


def base_of(name_or_path: str | Path) -> str:
    """The base model that a PEFT checkpoint names; empty where it names none. Raises RoadError where it is no checkpoint."""
    return str(_read(folder_of(name_or_path, (CONFIG, TENSORS)))[0].get("base_model_name_or_path") or "")


def export(road: "Roads", folder: str | Path, name: str | None = None) -> int:
    """Write one adapter as a PEFT checkpoint, for `PeftModel.from_pretrained(model, folder)`; returns its size in bytes.

    name: which one; the only one by default. Raises RoadError, and writes nothing, for what PEFT has no form for: hidden-state
    interventions, a LoRA beside the rotations, Conv1D and embeddings, pairs by halves of layers of several widths.
    """
    if name is None and len(road.adapters) == 1:
        name = next(iter(road.adapters))
    if name not in road.adapters:
        raise RoadError(f"no adapter {name!r} to export: expected one of {listing(road.adapters) or 'none'}")
    adapter = road.adapters[name]
    if adapter.lora_rank:
        raise RoadError(
            f"{name!r} has a LoRA beside its rotations, for which PEFT's RoAd has no form: merge it, or save_pretrained"
        )
    for path in adapter.layout.paths:
        module = road.model.get_submodule(path)
        if not isinstance(module, nn.Linear):
            raise RoadError(f"{path} is a {type(module).__name__}, which PEFT's RoAd can't turn: merge it, or save_pretrained")
    if len(set(adapter.groups)) > 1:
        raise RoadError(f"{name!r} pairs dims at distances {sorted(set(adapter.groups))}: PEFT has one group_size for all layers")
    tensors = {}
    for path in adapter.layout.paths:
        for kind, value in zip(("theta", "alpha"), adapter.held_values(path), strict=True):
            tensors[f"{_PREFIX}{path}.road_{kind}"] = as_peft(value, adapter.variant, adapter.groups[0]).cpu().contiguous()
    for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
        tensors |= {f"{_PREFIX}{path}.{key}": value.cpu().contiguous() for key, value in head.state_dict().items()}
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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    payload, text = safetensors.torch.save(tensors, {"format": "pt"}), json.dumps(config, indent=2) + "\n"
    write_whole(folder / TENSORS, payload)
    write_whole(folder / CONFIG, text)
    return len(payload) + len(text)


def as_peft(values: Tensor, variant: Variant, group: int) -> Tensor:
    """θ or α of a layer, [blocks, …], in PEFT's order: 1-D."""
    if variant == "road_1":
        return values
    if variant == "road_2":
        return _by_channel(values, group).flatten()
    diagonal, across = values.diagonal(dim1=1, dim2=2), torch.stack([values[:, 0, 1], values[:, 1, 0]], -1)
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


def _heads(model: nn.Module, config: Mapping[str, Any], rest: Mapping[str, Tensor], folder: Path) -> dict[str, nn.Module]:
    """The model's modules that `modules_to_save` names and the checkpoint has."""
    found: dict[str, nn.Module] = {}
    names = config.get("modules_to_save") or []
    for path, module in model.named_modules():
        if any(path == name or path.endswith(f".{name}") for name in names):
            missing = [key for key, own in module.state_dict().items() if rest.get(f"{path}.{key}", Tensor()).shape != own.shape]
            if missing:
                raise RoadError(
                    f"{folder}: {path}.{missing[0]} is missing or of another shape than the model's: load its own class of model"
                )
            found[path] = module
    known = tuple(f"{path}." for path in found)
    unknown = [key for key in rest if not key.startswith(known)] if known else list(rest)
    if unknown:
        raise RoadError(f"{folder} holds {unknown[0]}, which this model has no place for: load its own class of model")
    return found


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config, and the tensors by their names in the base model."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RoadError(
            f"{folder} is no PEFT checkpoint, or damaged ({first_line(error)}): expected {CONFIG} and {TENSORS}"
        ) from None
    return config, {key.removeprefix(_PREFIX): value for key, value in tensors.items()}
