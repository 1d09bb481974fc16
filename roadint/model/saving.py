"""What a RoadModel keeps: to a folder, to the hub, and back onto a model."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from torch import nn

from roadint.adapters.making import names_of
from roadint.architecture.layers import text_config
from roadint.data.prompts import check_template
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.composition import ALL
from roadint.model import checkpoint
from roadint.model.description import model_card

if TYPE_CHECKING:
    from roadint.model.road_model import RoadModel

Source = str | Path | Mapping[str, str | Path]


def save(road: "RoadModel", folder: str | Path, adapters: str | Sequence[str] | None) -> None:
    """Write a checkpoint; see `RoadModel.save_pretrained`."""
    if adapters is None:
        checkpoint.save(folder, list(road.interventions), about(road), list(road.adapters.values()))
        return
    names = names_of("adapters", adapters)
    if not names:
        raise RoadError(
            f"adapters={quoted(adapters)} names no adapter to save: expected some of "
            f"{listing(road.adapters)}"
        )
    chosen = [road.adapters.named(name, " to save") for name in names]
    checkpoint.save(folder, [], about(road), chosen)


def about(road: "RoadModel") -> dict[str, Any]:
    """What a checkpoint tells beside its values: the base model, the template, the training."""
    config = text_config(road.model)
    base_model = {
        "id": base_model_of(road),
        "model_type": str(config.model_type),
        "width": int(config.hidden_size),
        "layers": int(config.num_hidden_layers),
    }
    if "SequenceClassification" in type(road.model).__name__:
        base_model["labels"] = int(config.num_labels)
    return {
        "base_model": base_model,
        "template": road.template,
        "training": road.training_summary,
    }


def base_model_of(road: "RoadModel") -> str:
    """The hub id or folder of the model; empty where it has none."""
    return str(getattr(road.model, "name_or_path", ""))


def push(road: "RoadModel", repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload a checkpoint with a model card; see `RoadModel.push_to_hub`."""
    api = huggingface_hub.HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save(road, folder, None)
        specs = [*road.interventions.spec(), *road.adapters.spec()]
        card = model_card(repo_id, base_model_of(road), road.names, specs)
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Upload with roadint"
        )
    return str(commit.commit_url)


def restore(kind: "type[RoadModel]", model: nn.Module, source: Source) -> "RoadModel":
    """A checkpoint, or several by label, on its base model; see `RoadModel.from_pretrained`."""
    is_labelled = isinstance(source, Mapping)
    checkpoints: dict[Any, Any] = dict(source) if isinstance(source, Mapping) else {None: source}
    if not checkpoints:
        raise RoadError("no checkpoints given: expected at least one, such as {'a': 'runs/a'}")
    label = next(iter(checkpoints))
    if is_labelled:
        check_label(label)
    saved = checkpoint.read_for(model, checkpoints.pop(label))
    road = kind(model, saved.interventions(label))
    road.attach(saved.adapters(model, label))
    road.template = check_template(saved.config["template"])
    road.training_summary = saved.config["training"]
    for label, other in checkpoints.items():
        road.add_checkpoint(other, label)
    return road


def read_beside(road: "RoadModel", source: str | Path, label: str) -> checkpoint.Checkpoint:
    """A checkpoint that may go beside what is on a model.

    Raises:
        RoadError: where its label is taken, or it does not fit the model or the template.
    """
    check_label(label)
    if label in road.labels or label in road.names:
        raise RoadError(
            f"label {quoted(label)} is taken: expected another one than {listing(road.names)}"
        )
    saved = checkpoint.read_for(road.model, source)
    template = saved.config["template"]
    if template != road.template:
        raise RoadError(
            f"{source} was trained with template {quoted(template)}, this one with "
            f"{road.template!r}"
        )
    return saved


def check_label(label: object) -> None:
    """Check what stands behind the @ of a name.

    Raises:
        RoadError: where it is no plain word.
    """
    is_word = isinstance(label, str) and re.fullmatch(r"\w{1,100}", label)
    if not is_word or label in (ALL, "none"):
        raise RoadError(
            f"label {quoted(label)} of a checkpoint is not a plain word: expected letters, digits "
            "and '_', such as 'a'"
        )
