"""Saving: the description of the base model, labels, the upload to the hub."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import nn

from roadint.architecture.layers import text_config
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import ALL


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


def check_label(label: object) -> None:
    """Check a checkpoint's label, the part of a name after the @.

    Raises:
        RoadError: where it is no plain word.
    """
    is_word = isinstance(label, str) and re.fullmatch(r"\w{1,100}", label)
    if not is_word or label in (ALL, "none"):
        raise RoadError(
            f"label {quoted(label)} of a checkpoint is not a plain word: expected letters, digits "
            "and '_', such as 'a'"
        )
