"""Checkpoints: one safetensors file and one JSON file that say everything; checked on the way in, never pickle.

The JSON holds the base model's id and width, every intervention's arguments, the template, versions and a summary of the training,
and one SHA-256 over both files, so that a truncated or altered checkpoint is refused before any of it is used.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from roadint.errors import RoadError, first_line
from roadint.files import write_whole
from roadint.kinds import kind_of
from roadint.layers import find_layers, width_of
from roadint.site import SubspaceIntervention
from roadint.version import __version__

FORMAT = 1
TENSORS, CONFIG = "road.safetensors", "road.json"
WHILE_TRAINING = "checkpoints"  # the folder inside the output of a run that is not finished


def save(folder: str | Path, interventions: Sequence[SubspaceIntervention], about: Mapping[str, Any]) -> int:
    """Write the checkpoint, whole or not at all, and return its size in bytes.

    about: "base_model" (id, model_type, width, layers), "template" and "training", all plain JSON values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for index, intervention in enumerate(interventions):
        for name, value in intervention.values().items():
            tensors[f"{index}.{name}"] = value.cpu().contiguous()
    payload = safetensors.torch.save(tensors)
    config = {
        "format": FORMAT,
        "versions": {"roadint": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        **about,
        "dtype": "float32",
        "interventions": [{"kind": intervention.kind, **intervention.spec()} for intervention in interventions],
    }
    config["sha256"] = _digest(config, payload)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / TENSORS, payload)
    write_whole(folder / CONFIG, text)
    return len(payload) + len(text.encode())


def load(folder: str | Path, label: str | None = None) -> tuple[list[SubspaceIntervention], dict[str, Any]]:
    """The interventions with their values, and the JSON. Raises RoadError where anything is missing, altered or too new.

    label: makes the subspaces' names "name@label", to tell them from those of other checkpoints.
    """
    folder = Path(folder)
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise RoadError(f"{folder} is no roadint checkpoint: it has no {name}; expected a folder with {CONFIG} and {TENSORS}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RoadError(f"{folder / CONFIG} is truncated or no JSON ({error}): copy the checkpoint again") from None
    found = config.get("format") if isinstance(config, dict) else None
    if not isinstance(found, int) or found < 1:
        raise RoadError(f"{folder / CONFIG} has format {found!r}: expected {FORMAT}, written by roadint {__version__}")
    if found > FORMAT:
        raise RoadError(
            f"{folder} has checkpoint format {found}, this is roadint {__version__} which reads up to {FORMAT}: update roadint"
        )
    payload = (folder / TENSORS).read_bytes()
    if _digest(config, payload) != config.get("sha256"):
        raise RoadError(f"{folder} is truncated or was altered: its SHA-256 does not match {CONFIG}; copy or train it again")
    try:
        tensors = safetensors.torch.load(payload)
    except safetensors.SafetensorError as error:
        raise RoadError(f"{folder / TENSORS} is no safetensors file ({error}): copy the checkpoint again") from None
    return [_restore(index, spec, tensors, folder, label) for index, spec in enumerate(config["interventions"])], config


def load_for(
    model: nn.Module, name_or_path: str | Path, label: str | None = None
) -> tuple[list[SubspaceIntervention], dict[str, Any]]:
    """As `load`, from a folder or the hub. Raises RoadError also where it is another base model's."""
    interventions, config = load(folder_of(name_or_path), label)
    width, layers = width_of(model), len(find_layers(model)[1])
    base = config["base_model"]
    if base["width"] != width or base["layers"] != layers:
        raise RoadError(
            f"{name_or_path} was trained on {base['id'] or base['model_type']} "
            f"(width {base['width']}, {base['layers']} layers), "
            f"this model has width {width} and {layers} layers: load its own base model"
        )
    return interventions, config


def folder_of(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: a local one, or a copy of the hub's. Raises RoadError where it is neither."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        files = huggingface_hub.snapshot_download(str(name_or_path), allow_patterns=[CONFIG, TENSORS])
    except Exception as error:  # whatever the hub, the network or the name's validation raise
        raise RoadError(
            f"{str(name_or_path)!r} is neither a folder nor a reachable hub repository ({first_line(error)})"
        ) from error
    return Path(files)


def _restore(
    index: int, spec: dict[str, Any], tensors: Mapping[str, Tensor], folder: Path, label: str | None
) -> SubspaceIntervention:
    arguments = dict(spec)
    if label is not None:
        arguments["subspaces"] = {f"{name}@{label}": each for name, each in spec["subspaces"].items()}
    intervention = kind_of(arguments.pop("kind", "road"))(**arguments)  # the first checkpoints knew one kind
    with torch.no_grad():
        for name, parameter in intervention.values().items():
            value = tensors.get(f"{index}.{name}")
            if value is None or value.shape != parameter.shape or not bool(value.isfinite().all()):
                got = "nothing" if value is None else f"{tuple(value.shape)}, finite: {bool(value.isfinite().all())}"
                raise RoadError(f"{folder}: {name} of intervention {index} is {got}; expected finite {tuple(parameter.shape)}")
            parameter.copy_(value)
    return intervention


def _digest(config: Mapping[str, Any], payload: bytes) -> str:
    described = json.dumps({key: value for key, value in config.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(described.encode() + b"\0" + payload).hexdigest()
