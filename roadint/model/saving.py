"""Saving: the description of the base model, labels, the upload to the hub."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import nn

from roadint.architecture.layers import text_config


def base_model_of(model: nn.Module) -> dict[str, Any]:
    """The description of the base model that a checkpoint keeps, as plain JSON values."""
    config = text_config(model)
    base_model = {
        "id": str(getattr(model, "name_or_path", "")),
        "model_type": str(config.model_type),
        "width": int(config.hidden_size),
        "layers": int(config.num_hidden_layers),
    }
    if "SequenceClassification" in type(model).__name__:
        base_model["labels"] = int(config.num_labels)
    return base_model


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
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), repo_id)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Upload with roadint"
        )
    return str(commit.commit_url)
