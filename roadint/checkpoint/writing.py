"""Writing a checkpoint, whole or not at all."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor

from roadint.adapters.adapter import RoadAdapter
from roadint.checkpoint.format import CONFIG, TENSORS, digest
from roadint.checkpoint.schema import check_config, check_tensors
from roadint.errors import RoadError
from roadint.files.atomic import write_pair
from roadint.files.paths import make_folder, path_of, writing_to
from roadint.files.plain_json import plain
from roadint.files.readers import parse_json, read_header
from roadint.interventions.base import SubspaceIntervention
from roadint.version import __version__


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
    payload = safetensors.torch.save(apart(tensors))
    config = plain(_config(interventions, about, adapters))
    config["sha256"] = digest(config, payload)
    text = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    what = "the checkpoint to save"
    needed = check_config(parse_json(text, what), what)
    check_tensors(read_header(io.BytesIO(payload), len(payload), what), needed, what)
    make_folder(folder)
    with writing_to(folder):
        write_pair(folder / TENSORS, payload, folder / CONFIG, text)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that share memory copied: a file of safetensors holds each by itself."""
    seen: set[int] = set()
    copied = {}
    for name, value in tensors.items():
        memory = value.untyped_storage().data_ptr()
        copied[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return copied


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


def _stored(value: Tensor) -> Tensor:
    return (value.float() if value.is_floating_point() else value).cpu().contiguous()
