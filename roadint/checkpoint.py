"""Checkpoints: one safetensors file and one JSON file that say everything; checked on the way in, never pickle.

The JSON holds the base model's id and width, the arguments of every intervention and adapter, the template, versions and a summary
of the training, and one SHA-256 over both files, so that a truncated or altered checkpoint is refused before any of it is used.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from roadint.linear.road import LinearRoad
from roadint.linear.targets import Layout, check_layout
from roadint.site import SubspaceIntervention
from roadint.version import __version__

FORMAT = 2  # 1 knows no adapters; a checkpoint without them is still written as 1
TENSORS, CONFIG = "road.safetensors", "road.json"
WHILE_TRAINING = "checkpoints"  # the folder inside the output of a run that is not finished


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: the JSON, and the tensors by name. All of it has been checked; nothing of it is built yet."""

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]

    def names(self, label: str | None = None) -> list[str]:
        """What a composition may use: subspaces and adapters, "name@label" where there is a label."""
        subspaces = [name for spec in self.config["interventions"] for name in spec["subspaces"]]
        adapters = [spec["name"] for spec in self.config.get("adapters", ())]
        return [_labelled(name, label) for name in dict.fromkeys(subspaces + adapters)]

    def interventions(self, label: str | None = None) -> list[SubspaceIntervention]:
        """The interventions with their values; label: makes the subspaces' names "name@label". Raises RoadError."""
        found = []
        for index, spec in enumerate(self.config["interventions"]):
            arguments = {**spec, "subspaces": {_labelled(name, label): each for name, each in spec["subspaces"].items()}}
            intervention = kind_of(arguments.pop("kind", "road"))(**arguments)  # the first checkpoints knew one kind
            self._fill(f"{index}.", intervention.values(), f"intervention {index}")
            found.append(intervention)
        return found

    def adapters(self, model: nn.Module, label: str | None = None) -> list[LinearRoad]:
        """The adapters of linear layers with their values; a head's form is that of the model's own. Raises RoadError."""
        found = []
        for index, spec in enumerate(self.config.get("adapters", ())):
            arguments = dict(spec)
            layout = Layout(*(tuple(arguments.pop(name)) for name in ("paths", "widths", "inputs")))
            check_layout(model, layout, arguments["heads"])
            arguments["heads"] = {path: model.get_submodule(path) for path in arguments["heads"]}
            adapter = LinearRoad(_labelled(arguments.pop("name"), label), layout, **arguments)
            self._fill(f"adapter.{index}.", adapter.values(), f"adapter {adapter.name}")
            found.append(adapter)
        return found

    def adapter_values(self) -> list[tuple[dict[str, Any], Tensor, Tensor]]:
        """The arguments, θ and α of each adapter, without a model."""
        specs = enumerate(self.config.get("adapters", ()))
        return [(spec, self.tensors[f"adapter.{index}.theta"], self.tensors[f"adapter.{index}.alpha"]) for index, spec in specs]

    @torch.no_grad()
    def _fill(self, prefix: str, values: Mapping[str, Tensor], what: str) -> None:
        for name, parameter in values.items():
            value = self.tensors.get(prefix + name)
            if value is None or value.shape != parameter.shape or not bool(value.isfinite().all()):
                got = "nothing" if value is None else f"{tuple(value.shape)}, finite: {bool(value.isfinite().all())}"
                raise RoadError(f"{self.folder}: {name} of {what} is {got}; expected finite {tuple(parameter.shape)}")
            parameter.copy_(value)


def save(
    folder: str | Path, interventions: Sequence[SubspaceIntervention], about: Mapping[str, Any], adapters: Sequence[LinearRoad] = ()
) -> int:
    """Write the checkpoint, whole or not at all, and return its size in bytes.

    about: "base_model" (id, model_type, width, layers), "template" and "training", all plain JSON values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[str, SubspaceIntervention | LinearRoad]] = [(f"{index}.", each) for index, each in enumerate(interventions)]
    parts += [(f"adapter.{index}.", each) for index, each in enumerate(adapters)]
    tensors = {prefix + name: value.cpu().contiguous() for prefix, each in parts for name, value in each.values().items()}
    payload = safetensors.torch.save(tensors)
    config = {
        "format": 2 if adapters else 1,
        "versions": {"roadint": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        **about,
        "dtype": "float32",
        "interventions": [{"kind": intervention.kind, **intervention.spec()} for intervention in interventions],
    }
    if adapters:
        config["adapters"] = [each.spec() for each in adapters]
    config["sha256"] = _digest(config, payload)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / TENSORS, payload)
    write_whole(folder / CONFIG, text)
    return len(payload) + len(text.encode())


def read(folder: str | Path) -> Checkpoint:
    """What a folder holds. Raises RoadError where anything is missing, altered or too new."""
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
        raise RoadError(f"{folder / CONFIG} has format {found!r}: expected 1 to {FORMAT}, written by roadint {__version__}")
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
    return Checkpoint(folder, config, tensors)


def read_for(model: nn.Module, name_or_path: str | Path) -> Checkpoint:
    """As `read`, from a folder or the hub. Raises RoadError also where it is another base model's."""
    saved = read(folder_of(name_or_path))
    width, layers = width_of(model), len(find_layers(model)[1])
    base = saved.config["base_model"]
    if base["width"] != width or base["layers"] != layers:
        raise RoadError(
            f"{name_or_path} was trained on {base['id'] or base['model_type']} "
            f"(width {base['width']}, {base['layers']} layers), "
            f"this model has width {width} and {layers} layers: load its own base model"
        )
    return saved


def folder_of(name_or_path: str | Path, patterns: Sequence[str] = (CONFIG, TENSORS)) -> Path:
    """The folder of a checkpoint: a local one, or a copy of the hub's. Raises RoadError where it is neither."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        files = huggingface_hub.snapshot_download(str(name_or_path), allow_patterns=list(patterns))
    except Exception as error:  # whatever the hub, the network or the name's validation raise
        raise RoadError(
            f"{str(name_or_path)!r} is neither a folder nor a reachable hub repository ({first_line(error)})"
        ) from error
    return Path(files)


def _labelled(name: str, label: str | None) -> str:
    return name if label is None else f"{name}@{label}"


def _digest(config: Mapping[str, Any], payload: bytes) -> str:
    described = json.dumps({key: value for key, value in config.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(described.encode() + b"\0" + payload).hexdigest()
