"""Reading checkpoints, from folders and from the hub, without trust in them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import safetensors.torch
from torch import Tensor, nn

from roadint.architecture.layers import find_layers, text_config
from roadint.architecture.properties import width_of
from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.format import CONFIG, FORMAT, TENSORS, digest
from roadint.checkpoint.schema import check_config, check_tensors
from roadint.errors import RoadError, did_you_mean, first_line, quoted
from roadint.files.atomic import candidates
from roadint.files.readers import read_header, read_json
from roadint.files.rules import Shapes
from roadint.grammar.subspace import check_label
from roadint.version import __version__

_TRIES = 20  # reads of a folder into which others save


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
            if digest(config, payload) != config["sha256"]:
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
        is_current = tensors.is_file() and digest(config, tensors.read_bytes()) == config["sha256"]
        if not is_current:
            return  # the checkpoint's tensors are in one of the other files
    for path in [*beside, *Path(folder).glob(f".{CONFIG}.*")]:
        path.unlink(missing_ok=True)


def read_for(
    model: nn.Module,
    name_or_path: str | Path,
    revision: str | None = None,
    token: str | None = None,
) -> Checkpoint:
    """Read a checkpoint, from a folder or the hub (a revision of it), for this model.

    Raises:
        RoadError: as `read`, and where it was made on another base model.
    """
    saved = read(folder_of(name_or_path, revision=revision, token=token))
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
            "saved = roadint.checkpoint.reading.read(folder), RoadModel(model, "
            "saved.interventions()) and .attach(saved.adapters(model))"
        )
    return saved


def labelled_checkpoints(
    name_or_path: str | Path | Mapping[str, str | Path],
) -> list[tuple[str | None, str | Path]]:
    """Label and place of checkpoints; a single one has no label.

    Args:
        name_or_path: A folder or hub id; or label → folder or hub id.

    Raises:
        RoadError: where there is none, or the first label is no word.
    """
    if not isinstance(name_or_path, Mapping):
        return [(None, name_or_path)]
    if not name_or_path:
        raise RoadError("no checkpoints given: expected at least one, as {'a': 'runs/a'}")
    check_label(next(iter(name_or_path)))
    return list(name_or_path.items())


def folder_of(
    name_or_path: str | Path,
    patterns: Sequence[str] = (CONFIG, TENSORS),
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The folder of a checkpoint; one of the hub is downloaded.

    Args:
        name_or_path: A folder or a hub id.
        patterns: The files to download.
        revision: A branch, tag or commit of the hub's repository.
        token: The access token of the hub.

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
        files = huggingface_hub.snapshot_download(
            str(name_or_path), revision=revision, token=token, allow_patterns=list(patterns)
        )
    except Exception as error:  # whatever the hub, the network or the name's validation raise
        raise RoadError(
            f"{quoted(str(name_or_path))} is neither a folder nor a reachable hub repository "
            f"({first_line(error)}){did_you_mean(str(name_or_path), _beside(Path(name_or_path)))}"
        ) from error
    return Path(files)


def _beside(path: Path) -> list[str]:
    """The folders beside a path, as it would name them."""
    try:
        return [str(other) for other in path.parent.iterdir() if other.is_dir()]
    except OSError:
        return []
