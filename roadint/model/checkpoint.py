"""Checkpoints: one safetensors file and one JSON file that say everything; checked on the way in, never pickle.

The JSON holds the base model's id and width, the arguments of every intervention and adapter, the template, versions and a summary
of the training, and one SHA-256 over both files, so that a truncated or altered checkpoint is refused before any of it is used.
"""

import hashlib
import io
import json
import os
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

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import Layout, check_layout
from roadint.architecture.layers import find_layers, text_config
from roadint.architecture.properties import width_of
from roadint.errors import RoadError, first_line, quoted
from roadint.files.atomic import candidates, write_pair
from roadint.files.paths import make_folder, path_of
from roadint.files.plain_json import plain
from roadint.files.readers import parse_json, read_header, read_json
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.registry import kind_of
from roadint.model.schema import Shapes, check_config, check_tensors
from roadint.version import __version__

FORMAT = 2  # 1 knows no adapters; a checkpoint without them is still written as 1
TENSORS, CONFIG = "road.safetensors", "road.json"
WHILE_TRAINING = "checkpoints"  # the folder inside the output of a run that is not finished
_TRIES = 20  # how often a save that runs meanwhile is looked past


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

    @property
    def dtype(self) -> str:
        """The base model's in the training, as `roadint.load` takes it; "auto" where the checkpoint tells none."""
        recipe = self.config["training"].get("recipe")
        told = recipe.get("dtype") if isinstance(recipe, dict) else None
        known = isinstance(told, str) and isinstance(
            getattr(torch, told.removeprefix("torch."), None), torch.dtype
        )
        return told.removeprefix("torch.") if isinstance(told, str) and known else "auto"

    def interventions(self, label: str | None = None) -> list[SubspaceIntervention]:
        """The interventions with their values; label: makes the subspaces' names "name@label". Raises RoadError."""
        found = []
        for index, spec in enumerate(self.config["interventions"]):
            arguments = {
                **spec,
                "subspaces": {
                    _labelled(name, label): each for name, each in spec["subspaces"].items()
                },
            }
            intervention = kind_of(arguments.pop("kind", "road"))(
                **arguments
            )  # the first checkpoints knew one kind
            self._fill(f"{index}.", intervention.values(), f"intervention {index}")
            found.append(intervention)
        return found

    def adapters(self, model: nn.Module, label: str | None = None) -> list[RoadAdapter]:
        """The adapters of linear layers with their values; a head's form is that of the model's own. Raises RoadError."""
        found = []
        for index, spec in enumerate(self.config.get("adapters", ())):
            arguments = dict(spec)
            layout = Layout(*(tuple(arguments.pop(name)) for name in ("paths", "widths", "inputs")))
            check_layout(model, layout, arguments["heads"])
            arguments["heads"] = {
                path: self._head(model, index, path) for path in arguments["heads"]
            }
            adapter = RoadAdapter(_labelled(arguments.pop("name"), label), layout, **arguments)
            self._fill(f"adapter.{index}.", adapter.values(), f"adapter {adapter.name}")
            found.append(adapter)
        return found

    def adapter_values(self) -> list[tuple[dict[str, Any], Tensor, Tensor]]:
        """The arguments, θ and α of each adapter, without a model."""
        specs = enumerate(self.config.get("adapters", ()))
        return [
            (spec, self.tensors[f"adapter.{index}.theta"], self.tensors[f"adapter.{index}.alpha"])
            for index, spec in specs
        ]

    def _head(self, model: nn.Module, index: int, path: str) -> nn.Module:
        """The model's own module, of which the adapter has a copy: of the same numbers, before it is copied."""
        module = model.get_submodule(path)
        for name, value in module.state_dict().items():
            found = self.tensors.get(f"adapter.{index}.heads.{path}.{name}")
            if found is None or found.shape != value.shape:
                got = "nothing" if found is None else tuple(found.shape)
                raise RoadError(
                    f"{self.folder}: {path}.{name} is {got}, this model's {tuple(value.shape)}: load its own base model"
                )
        return module

    @torch.no_grad()
    def _fill(self, prefix: str, values: Mapping[str, Tensor], what: str) -> None:
        for name, parameter in values.items():
            value = self.tensors.get(prefix + name)
            if value is None or value.shape != parameter.shape or not bool(value.isfinite().all()):
                got = (
                    "nothing"
                    if value is None
                    else f"{tuple(value.shape)}, finite: {bool(value.isfinite().all())}"
                )
                raise RoadError(
                    f"{self.folder}: {name} of {what} is {got}; expected finite {tuple(parameter.shape)}"
                )
            if value.dtype != parameter.dtype:
                raise RoadError(
                    f"{self.folder}: {name} of {what} is {value.dtype}; expected {parameter.dtype}"
                )
            parameter.copy_(value)
        for name in self.tensors:
            if name.startswith(prefix) and name.removeprefix(prefix) not in values:
                raise RoadError(
                    f"{self.folder} holds {quoted(name)}, for which {what} has no place: load its own base model"
                )


def save(
    folder: str | Path,
    interventions: Sequence[SubspaceIntervention],
    about: Mapping[str, Any],
    adapters: Sequence[RoadAdapter] = (),
) -> int:
    """Write the checkpoint, whole or not at all, and return its size in bytes.

    about: "base_model" (id, model_type, width, layers), "template" and "training", all plain JSON values.
    """
    folder = path_of("folder", folder)
    parts: list[tuple[str, SubspaceIntervention | RoadAdapter]] = [
        (f"{index}.", each) for index, each in enumerate(interventions)
    ]
    parts += [(f"adapter.{index}.", each) for index, each in enumerate(adapters)]
    for _, each in parts:
        if not bool(each.values().get("basis", torch.zeros(())).isfinite().all()):
            raise RoadError(
                "a basis 'pca' was never measured: nothing is written; roadint.train measures it, or fit_basis(hidden)"
            )
    tensors = {
        prefix + name: _stored(value)
        for prefix, each in parts
        for name, value in each.values().items()
    }
    payload = safetensors.torch.save(tensors)
    config = {
        "format": 2 if adapters else 1,
        "versions": {
            "roadint": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **about,
        "dtype": "float32",
        "interventions": [
            {"kind": intervention.kind, **intervention.spec()} for intervention in interventions
        ],
    }
    if adapters:
        config["adapters"] = [each.spec() for each in adapters]
    config = plain(config)
    config["sha256"] = _digest(config, payload)
    text = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    # What would not load again is not written.
    needed = check_config(parse_json(text, "the checkpoint to save"), "the checkpoint to save")
    check_tensors(
        read_header(io.BytesIO(payload), len(payload), "the checkpoint to save"),
        needed,
        "the checkpoint to save",
    )
    make_folder(folder)
    write_pair(folder / TENSORS, payload, folder / CONFIG, text)
    return len(payload) + len(text)


def read(folder: str | Path) -> Checkpoint:
    """What a folder holds. Raises RoadError where anything is missing, altered, too new or not as the specification says.

    A save that was killed half-way leaves what was there before: here it is found again. A save that runs meanwhile is waited for.
    """
    folder = Path(folder)
    for attempt in range(_TRIES):
        config = _read_config(folder)
        needed = check_config(config, str(folder / CONFIG))
        try:
            return Checkpoint(folder, config, _read_tensors(folder, config, needed))
        except RoadError:
            if attempt and _read_config(folder).get("sha256") == config["sha256"]:
                raise
    raise RoadError(f"{folder} is being written all the time: load it when that is done")


def _read_config(folder: Path) -> dict[str, Any]:
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise RoadError(
                f"{folder} is no roadint checkpoint: it has no {name}; expected a folder with {CONFIG} and {TENSORS}"
            )
    config = read_json(folder / CONFIG)
    found = config.get("format") if isinstance(config, dict) else None
    if type(found) is not int or found < 1:
        raise RoadError(
            f"{folder / CONFIG} has format {quoted(found)}: expected 1 to {FORMAT}, written by roadint {__version__}"
        )
    if found > FORMAT:
        raise RoadError(
            f"{folder} has checkpoint format {quoted(found)}, this is roadint {__version__} which reads up to {FORMAT}: "
            "update roadint"
        )
    return config  # type: ignore[no-any-return]


def _read_tensors(
    folder: Path, config: Mapping[str, Any], needed: Mapping[str, Shapes]
) -> dict[str, Tensor]:
    """The tensors that the JSON was written with: those in their place, or those of before a save that was killed."""
    reason: RoadError | None = None
    for path in candidates(folder / TENSORS):
        try:
            with path.open("rb") as file:
                check_tensors(
                    read_header(file, os.fstat(file.fileno()).st_size, str(path)), needed, str(path)
                )
                file.seek(0)
                payload = file.read()
            if _digest(config, payload) != config["sha256"]:
                raise RoadError(
                    f"{folder} is truncated or was altered: its SHA-256 does not match {CONFIG}; copy or train it again"
                )
            return safetensors.torch.load(payload)
        except (RoadError, OSError, safetensors.SafetensorError) as error:
            said = (
                error
                if isinstance(error, RoadError)
                else RoadError(f"{path} can't be read ({first_line(error)})")
            )
            reason = reason or said
    raise reason or RoadError(f"{folder} has no {TENSORS}")


def size_of(folder: str | Path) -> int:
    """The bytes of its two files."""
    return sum((Path(folder) / name).stat().st_size for name in (CONFIG, TENSORS))


def tidy(folder: str | Path) -> None:
    """Remove what saves that were killed left beside a checkpoint. Raises RoadError as `read` does."""
    config, tensors = read(folder).config, Path(folder) / TENSORS
    beside = [each for each in candidates(tensors) if each != tensors]
    if beside and (
        not tensors.is_file() or _digest(config, tensors.read_bytes()) != config["sha256"]
    ):
        return  # one of them is the checkpoint's own
    for each in [*beside, *Path(folder).glob(f".{CONFIG}.*")]:
        each.unlink(missing_ok=True)


def read_for(model: nn.Module, name_or_path: str | Path) -> Checkpoint:
    """As `read`, from a folder or the hub. Raises RoadError also where it is another base model's."""
    saved = read(folder_of(name_or_path))
    width, layers = width_of(model), len(find_layers(model)[1])
    base = saved.config["base_model"]
    theirs, ours = (
        base.get("model_type"),
        str(text_config(model).model_type),
    )  # the first checkpoints did not say
    name = quoted(base["id"] or theirs)[1:-1]
    trained_on = (
        f"{name_or_path} was trained on {name} (width {base['width']}, {base['layers']} layers)"
    )
    if base["width"] != width or base["layers"] != layers:
        raise RoadError(
            f"{trained_on}, this model has width {width} and {layers} layers: load its own base model"
        )
    if theirs not in (None, ours):
        raise RoadError(
            f"{trained_on}, a model of type {quoted(theirs)}, this one is of type {quoted(ours)}: load its own base model; where "
            "both types are one network: saved = roadint.model.checkpoint.read(folder), RoadModel(model, saved.interventions()) and "
            ".attach(saved.adapters(model))"
        )
    return saved


def folder_of(name_or_path: str | Path, patterns: Sequence[str] = (CONFIG, TENSORS)) -> Path:
    """The folder of a checkpoint: a local one, or a copy of the hub's. Raises RoadError where it is neither."""
    if not isinstance(name_or_path, (str, os.PathLike)) or not str(name_or_path).strip():
        raise RoadError(
            f"checkpoint {quoted(name_or_path)}: expected a folder or a hub id, such as 'runs/german-english'"
        )
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    if os.path.isfile(name_or_path):
        raise RoadError(
            f"checkpoint {quoted(str(name_or_path))} is a file: expected the folder that holds it"
        )
    try:
        files = huggingface_hub.snapshot_download(str(name_or_path), allow_patterns=list(patterns))
    except Exception as error:  # whatever the hub, the network or the name's validation raise
        raise RoadError(
            f"{quoted(str(name_or_path))} is neither a folder nor a reachable hub repository ({first_line(error)})"
        ) from error
    return Path(files)


def _labelled(name: str, label: str | None) -> str:
    return name if label is None else f"{name}@{label}"


def _stored(value: Tensor) -> Tensor:
    return (value.float() if value.is_floating_point() else value).cpu().contiguous()


def _digest(config: Mapping[str, Any], payload: bytes) -> str:
    described = json.dumps(
        {key: value for key, value in config.items() if key != "sha256"}, sort_keys=True
    )
    return hashlib.sha256(described.encode() + b"\0" + payload).hexdigest()
