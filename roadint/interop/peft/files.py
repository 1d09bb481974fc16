"""Reading the two files of a PEFT checkpoint, without trust in them."""

import os
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
from torch import Tensor

from roadint.data.prompts import Template
from roadint.errors import RoadError, first_line, listing, quoted
from roadint.files.readers import read_header, read_json
from roadint.files.rules import anything, either, fields, listed, one_of, text, whole
from roadint.grammar.subspace import check_name

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
NOTES = "roadint.json"
"""What PEFT has no place for: the adapter's name, the template of prompts."""
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's own modules."""
VALUES = (".road_theta", ".road_alpha")
"""What the names of a layer's values end with."""

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
    # These say nothing of what is computed.
    **dict.fromkeys(("auto_mapping", "peft_version", "inference_mode"), anything),
}
_CONFIG = fields({"peft_type": one_of("ROAD")}, _SETTINGS, open_to_others=True)
_NOTES = fields({"name": text(most=1000), "template": one_of(*get_args(Template))}, {})
_FLOATS = ("F16", "BF16", "F32", "F64")


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint, checked.

    Raises:
        RoadError: where it is not that of a RoAd, or has a setting that roadint does not know (a
            later PEFT may add some).
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RoadError(f"{folder} is no PEFT checkpoint: expected {CONFIG} and {TENSORS}")
    config = read_json(path)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if isinstance(kind, str) and kind != "ROAD":
        raise RoadError(
            f"{folder} is a PEFT {quoted(kind)[1:-1]} checkpoint: "
            "expected peft_type ROAD; keep using PEFT for it"
        )
    _CONFIG(config, str(path))
    for name, value in config.items():
        if name not in ("peft_type", *_SETTINGS) and value not in (None, False, "", [], {}):
            raise RoadError(
                f"{path} has {quoted(name)}: {quoted(value)}, "
                "which is no setting of RoAd that roadint knows"
            )
    group = config.get("group_size", 64)
    if group % 2:
        raise RoadError(f"{path}: group_size is {group}: expected an even number")
    return config  # type: ignore[no-any-return]


def read_notes(folder: Path) -> dict[str, Any]:
    """What `export` wrote beside a checkpoint; empty for one that PEFT wrote.

    Raises:
        RoadError: where it is damaged.
    """
    path = folder / NOTES
    if not path.is_file():
        return {}
    notes = read_json(path)
    _NOTES(notes, str(path))
    check_name(notes["name"])
    return notes  # type: ignore[no-any-return]


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors, by their names in the base model; no values are read.

    Raises:
        RoadError: where the file is damaged, or has tensors of unknown types or one twice.
    """
    try:
        with (folder / TENSORS).open("rb") as file:
            header = read_header(file, os.fstat(file.fileno()).st_size, TENSORS)
    except RoadError as error:
        raise RoadError(f"{folder} is damaged: {error}") from None
    except OSError as error:
        raise RoadError(
            f"{folder} is no PEFT checkpoint, or damaged ({first_line(error)}): "
            f"expected {CONFIG} and {TENSORS}"
        ) from None
    for key, (dtype, _) in header.items():
        allowed = _FLOATS if key.endswith(VALUES) else (*_FLOATS, "I64", "I32", "BOOL", "U8")
        if dtype not in allowed:
            raise RoadError(
                f"{folder}: {quoted(key)} is {dtype}: expected one of {listing(allowed)}"
            )
    shapes = {key.removeprefix(PREFIX): shape for key, (_, shape) in header.items()}
    if len(shapes) < len(header):
        raise RoadError(
            f"{folder} holds tensors twice, with {PREFIX} and without: expected each once"
        )
    return shapes


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors by their names in the base model.

    Raises:
        RoadError: where the file is damaged.
    """
    try:
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RoadError(
            f"{folder} is damaged ({first_line(error)}): copy the checkpoint again"
        ) from None
    return {key.removeprefix(PREFIX): value for key, value in tensors.items()}
