"""Checkpoints: a safetensors file and a JSON file that say everything, never pickle.

The JSON holds the base model's id and width, the arguments of every intervention and adapter, the
template, versions, a summary of the training, and one SHA-256 over both files, so that a truncated
or altered checkpoint is refused before any of it is used.
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
from roadint.errors import RoadError, first_line, listing, quoted
from roadint.files.atomic import candidates, write_pair
from roadint.files.paths import make_folder, path_of
from roadint.files.plain_json import plain
from roadint.files.readers import parse_json, read_header, read_json
from roadint.files.rules import Shapes
from roadint.grammar.subspace import check_name
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.registry import kind_of
from roadint.model.schema import check_config, check_tensors
from roadint.version import __version__

FORMAT = 2  # 1 knows no adapters; a checkpoint without them is still written as 1
TENSORS, CONFIG = "road.safetensors", "road.json"
WHILE_TRAINING = "checkpoints"  # the folder inside the output of a run that is not finished
_TRIES = 20  # reads of a folder into which others save


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint's folder, checked, before anything is built from it.

    Args:
        folder: The folder that it was read from.
        config: The content of the JSON file.
        tensors: The tensors by name.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]

    def names(self, label: str | None = None) -> list[str]:
        """The names that a composition may use; with a label they are "name@label"."""
        subspaces = [name for spec in self.config["interventions"] for name in spec["subspaces"]]
        adapters = [spec["name"] for spec in self.config.get("adapters", ())]
        return [_labelled(name, label) for name in dict.fromkeys(subspaces + adapters)]

    @property
    def dtype(self) -> str:
        """The base model's dtype in the training, as `roadint.load` takes it; "auto" if unknown."""
        recipe = self.config["training"].get("recipe")
        recipe = recipe if isinstance(recipe, dict) else {}
        section = recipe.get("model")  # the first checkpoints have no sections
        dtype = (section if isinstance(section, dict) else recipe).get("dtype")
        if not isinstance(dtype, str):
            return "auto"
        name = dtype.removeprefix("torch.")
        return name if isinstance(getattr(torch, name, None), torch.dtype) else "auto"

    def interventions(self, label: str | None = None) -> list[SubspaceIntervention]:
        """The interventions with their values.

        Args:
            label: Makes the subspaces' names "name@label".

        Raises:
            RoadError: where values do not fit their arguments.
        """
        interventions = []
        for index, spec in enumerate(self.config["interventions"]):
            subspaces = {_labelled(name, label): part for name, part in spec["subspaces"].items()}
            arguments = {**spec, "subspaces": subspaces}
            kind = arguments.pop("kind", "road")  # the first checkpoints knew one kind
            intervention = kind_of(kind)(**arguments)
            self._fill(f"{index}.", intervention.values(), f"intervention {index}")
            interventions.append(intervention)
        return interventions

    def adapters(self, model: nn.Module, label: str | None = None) -> list[RoadAdapter]:
        """The adapters with their values.

        Args:
            model: The base model; an adapter's head has the form of the model's own.
            label: Makes the adapters' names "name@label".

        Raises:
            RoadError: where they do not fit the model, or values their arguments.
        """
        adapters = []
        for index, spec in enumerate(self.config.get("adapters", ())):
            arguments = dict(spec)
            layout = Layout(*(tuple(arguments.pop(name)) for name in ("paths", "widths", "inputs")))
            check_layout(model, layout, arguments["heads"])
            heads = {path: self._head(model, index, path) for path in arguments.pop("heads")}
            name = _labelled(arguments.pop("name"), label)
            adapter = RoadAdapter(name, layout, heads=heads, **arguments)
            self._fill(f"adapter.{index}.", adapter.values(), f"adapter {adapter.name}")
            adapters.append(adapter)
        return adapters

    def single_adapter(self, model: nn.Module, name: str | None = None) -> RoadAdapter:
        """The checkpoint's only adapter, under another name where one is wanted.

        Raises:
            RoadError: where it holds more, or interventions.
        """
        adapters = self.adapters(model)
        if len(adapters) != 1 or self.config["interventions"]:
            raise RoadError(
                f"{self.folder} holds {listing(self.names())}: expected a single adapter; take "
                "add_checkpoint"
            )
        adapters[0].name = adapters[0].name if name is None else check_name(name)
        return adapters[0]

    def adapter_values(self) -> list[tuple[dict[str, Any], Tensor, Tensor]]:
        """The arguments, θ and α of each adapter, without a model."""
        return [
            (spec, self.tensors[f"adapter.{index}.theta"], self.tensors[f"adapter.{index}.alpha"])
            for index, spec in enumerate(self.config.get("adapters", ()))
        ]

    def _head(self, model: nn.Module, index: int, path: str) -> nn.Module:
        """The model's module that an adapter's head replaces, known to be of the same shapes."""
        module = model.get_submodule(path)
        for name, value in module.state_dict().items():
            saved = self.tensors.get(f"adapter.{index}.heads.{path}.{name}")
            if saved is None or saved.shape != value.shape:
                raise RoadError(
                    f"{self.folder}: {path}.{name} is {_shape(saved)}, this model's "
                    f"{tuple(value.shape)}: load its own base model"
                )
        return module

    @torch.no_grad()
    def _fill(self, prefix: str, values: Mapping[str, Tensor], what: str) -> None:
        for name, parameter in values.items():
            saved = self.tensors.get(prefix + name)
            is_finite = saved is not None and bool(saved.isfinite().all())
            if saved is None or saved.shape != parameter.shape or not is_finite:
                finite = "" if saved is None else f", finite: {is_finite}"
                raise RoadError(
                    f"{self.folder}: {name} of {what} is {_shape(saved)}{finite}; expected finite "
                    f"{tuple(parameter.shape)}"
                )
            if saved.dtype != parameter.dtype:
                raise RoadError(
                    f"{self.folder}: {name} of {what} is {saved.dtype}; expected {parameter.dtype}"
                )
            parameter.copy_(saved)
        for name in self.tensors:
            if name.startswith(prefix) and name.removeprefix(prefix) not in values:
                raise RoadError(
                    f"{self.folder} holds {quoted(name)}, for which {what} has no place: load its "
                    "own base model"
                )


def save(
    folder: str | Path,
    interventions: Sequence[SubspaceIntervention],
    about: Mapping[str, Any],
    adapters: Sequence[RoadAdapter] = (),
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        folder: Where to; it is made where there is none.
        interventions: The interventions, with their values.
        about: "base_model" (id, model_type, width, layers), "template" and "training", all plain
            JSON values.
        adapters: The adapters, with their values.

    Raises:
        RoadError: for what would not load again; nothing is written then.
    """
    folder = path_of("folder", folder)
    parts: dict[str, SubspaceIntervention | RoadAdapter] = {}
    parts |= {f"{index}.": intervention for index, intervention in enumerate(interventions)}
    parts |= {f"adapter.{index}.": adapter for index, adapter in enumerate(adapters)}
    tensors: dict[str, Tensor] = {}
    for prefix, part in parts.items():
        values = part.values()
        if not bool(values.get("basis", torch.zeros(())).isfinite().all()):
            raise RoadError(
                "a basis 'pca' was never measured: nothing is written; roadint.train measures it, "
                "or fit_basis(hidden)"
            )
        tensors |= {prefix + name: _stored(value) for name, value in values.items()}
    payload = safetensors.torch.save(tensors)
    config = plain(_config(interventions, about, adapters))
    config["sha256"] = _digest(config, payload)
    text = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    what = "the checkpoint to save"
    needed = check_config(parse_json(text, what), what)
    check_tensors(read_header(io.BytesIO(payload), len(payload), what), needed, what)
    make_folder(folder)
    write_pair(folder / TENSORS, payload, folder / CONFIG, text)


def _config(
    interventions: Sequence[SubspaceIntervention],
    about: Mapping[str, Any],
    adapters: Sequence[RoadAdapter],
) -> dict[str, Any]:
    config = {
        "format": 2 if adapters else 1,
        "versions": {
            "roadint": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **about,
        "dtype": "float32",
        "interventions": [{"kind": part.kind, **part.spec()} for part in interventions],
    }
    if adapters:
        config["adapters"] = [adapter.spec() for adapter in adapters]
    return config


def read(folder: str | Path) -> Checkpoint:
    """Read a checkpoint.

    After a save that was killed half-way, that is the checkpoint from before it. While another
    process saves, it is read again until both files belong together.

    Raises:
        RoadError: where anything is missing, altered, too new or not as the format says.
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
                f"{folder} is no roadint checkpoint: it has no {name}; expected a folder with "
                f"{CONFIG} and {TENSORS}"
            )
    config = read_json(folder / CONFIG)
    version = config.get("format") if isinstance(config, dict) else None
    if type(version) is not int or version < 1:
        raise RoadError(
            f"{folder / CONFIG} has format {quoted(version)}: expected 1 to {FORMAT}, written by "
            f"roadint {__version__}"
        )
    if version > FORMAT:
        raise RoadError(
            f"{folder} has checkpoint format {quoted(version)}, this is roadint {__version__} "
            f"which reads up to {FORMAT}: update roadint"
        )
    return config  # type: ignore[no-any-return]


def _read_tensors(
    folder: Path, config: Mapping[str, Any], needed: Mapping[str, Shapes]
) -> dict[str, Tensor]:
    """The tensors that belong to the JSON; after a killed save they lie in a file beside."""
    reason: RoadError | None = None
    for path in candidates(folder / TENSORS):
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                check_tensors(read_header(file, size, str(path)), needed, str(path))
                file.seek(0)
                payload = file.read()
            if _digest(config, payload) != config["sha256"]:
                raise RoadError(
                    f"{folder} is truncated or was altered: its SHA-256 does not match {CONFIG}; "
                    "copy or train it again"
                )
            return safetensors.torch.load(payload)
        except RoadError as error:
            reason = reason or error
        except (OSError, safetensors.SafetensorError) as error:
            reason = reason or RoadError(f"{path} can't be read ({first_line(error)})")
    raise reason or RoadError(f"{folder} has no {TENSORS}")


def size_of(folder: str | Path) -> int:
    """The bytes of a checkpoint's two files."""
    return sum((Path(folder) / name).stat().st_size for name in (CONFIG, TENSORS))


def tidy(folder: str | Path) -> None:
    """Remove what saves that were killed left beside a checkpoint.

    Raises:
        RoadError: as `read`.
    """
    config, tensors = read(folder).config, Path(folder) / TENSORS
    beside = [path for path in candidates(tensors) if path != tensors]
    if beside:
        is_current = tensors.is_file() and _digest(config, tensors.read_bytes()) == config["sha256"]
        if not is_current:
            return  # the checkpoint's tensors are in one of the other files
    for path in [*beside, *Path(folder).glob(f".{CONFIG}.*")]:
        path.unlink(missing_ok=True)


def read_for(model: nn.Module, name_or_path: str | Path) -> Checkpoint:
    """Read a checkpoint, from a folder or the hub, for this model.

    Raises:
        RoadError: as `read`, and where it was made on another base model.
    """
    saved = read(folder_of(name_or_path))
    width, layers = width_of(model), len(find_layers(model)[1])
    base = saved.config["base_model"]
    # The first checkpoints did not record the type.
    saved_type, model_type = base.get("model_type"), str(text_config(model).model_type)
    name = quoted(base["id"] or saved_type)[1:-1]
    trained_on = (
        f"{name_or_path} was trained on {name} (width {base['width']}, {base['layers']} layers)"
    )
    if base["width"] != width or base["layers"] != layers:
        raise RoadError(
            f"{trained_on}, this model has width {width} and {layers} layers: load its own base "
            "model"
        )
    if saved_type not in (None, model_type):
        raise RoadError(
            f"{trained_on}, a model of type {quoted(saved_type)}, this one is of type "
            f"{quoted(model_type)}: load its own base model; where both types are one network: "
            "saved = roadint.model.checkpoint.read(folder), RoadModel(model, "
            "saved.interventions()) and .attach(saved.adapters(model))"
        )
    return saved


def folder_of(name_or_path: str | Path, patterns: Sequence[str] = (CONFIG, TENSORS)) -> Path:
    """The folder of a checkpoint; one of the hub is downloaded.

    Args:
        name_or_path: A folder or a hub id.
        patterns: The files to download.

    Raises:
        RoadError: where it is neither.
    """
    if not isinstance(name_or_path, (str, os.PathLike)) or not str(name_or_path).strip():
        raise RoadError(
            f"checkpoint {quoted(name_or_path)}: expected a folder or a hub id, such as "
            "'runs/german-english'"
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
            f"{quoted(str(name_or_path))} is neither a folder nor a reachable hub repository "
            f"({first_line(error)})"
        ) from error
    return Path(files)


def _labelled(name: str, label: str | None) -> str:
    return name if label is None else f"{name}@{label}"


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))


def _stored(value: Tensor) -> Tensor:
    return (value.float() if value.is_floating_point() else value).cpu().contiguous()


def _digest(config: Mapping[str, Any], payload: bytes) -> str:
    described = {key: value for key, value in config.items() if key != "sha256"}
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\0" + payload).hexdigest()
