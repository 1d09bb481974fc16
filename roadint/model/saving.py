"""Saving: the description of the base model, labels, the upload to the hub."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.making import names_of
from roadint.architecture.layers import inner_model, text_config
from roadint.checkpoint.reading import read
from roadint.engines.adapters import Adapters
from roadint.errors import RoadError, listing, quoted
from roadint.model.card import model_card


def base_model_of(model: nn.Module) -> dict[str, Any]:
    """The description of the base model that a checkpoint keeps, as plain JSON values."""
    config = text_config(model)
    base_model = {
        "id": str(getattr(model, "name_or_path", "")),
        "model_type": str(config.model_type),
        "width": int(config.hidden_size),
        "layers": int(config.num_hidden_layers),
    }
    if "SequenceClassification" in type(inner_model(model)).__name__:
        base_model["labels"] = int(config.num_labels)
    return base_model


def chosen_adapters(adapters: Adapters, named: str | Sequence[str]) -> list[RoadAdapter]:
    """The adapters that are named, at least one.

    Raises:
        RoadError: where none is named, or one is unknown.
    """
    names = names_of("adapters", named)
    if not names:
        raise RoadError(
            f"adapters={quoted(named)} names no adapter to save: expected some of "
            f"{listing(adapters)}"
        )
    return [adapters.named(name, " to save") for name in names]


def upload(
    save: Callable[[Path], None],
    repo_id: str,
    report: Mapping[str, Any] | None,
    *,
    private: bool,
    token: str | None,
) -> str:
    """Upload what `save` writes, a checkpoint, with a model card; returns the commit's address."""

    def write(folder: Path, full_id: str) -> None:
        save(folder)
        card = model_card(full_id, read(folder).config, report)
        (folder / "README.md").write_text(card, encoding="utf-8")

    return push(repo_id, write, private=private, token=token)


def push(
    repo_id: str, write: Callable[[Path, str], None], *, private: bool, token: str | None
) -> str:
    """Upload what `write` puts into a folder to the hub.

    Args:
        repo_id: The repository; it is made where there is none.
        write: Takes the folder, and the full id of the repository.
        private: Whether a new repository is private.
        token: The access token of the hub.

    Returns:
        The address of the commit.
    """
    api = huggingface_hub.HfApi(token=token)
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), repo_id)  # before there is a repository, which else stayed empty
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Upload with roadint"
        )
    return str(commit.commit_url)
