"""Opening a checkpoint by name, on its base model."""

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from roadint.checkpoint.reading import folder_of, read
from roadint.grammar.composition import Composition
from roadint.grammar.subspace import check_label
from roadint.model import pretrained
from roadint.model.road_model import RoadModel


def open_checkpoint(
    name_or_path: str,
    model: str | None = None,
    compose: Sequence[str] | None = None,
    added: Mapping[str, str] | None = None,
    base: tuple[nn.Module, PreTrainedTokenizerBase] | None = None,
    dtype: str | None = None,
) -> tuple[RoadModel, PreTrainedTokenizerBase]:
    """Open a checkpoint on its base model; compositions are checked before the model is loaded.

    Args:
        name_or_path: A folder or hub id.
        model: The name of a base model, in place of the checkpoint's.
        compose: Compositions to check.
        added: Further checkpoints, by label.
        base: The base model and its tokenizer, where they are loaded already.
        dtype: The dtype of the base model; that of the training by default.

    Returns:
        The RoadModel and the tokenizer.

    Raises:
        RoadError: where a checkpoint or a composition does not fit.
    """
    names = names_of(name_or_path, added)
    for text in compose or ():
        Composition.parse(text, names)
    folder = folder_of(name_or_path)
    saved = read(folder)
    others = {label: folder_of(path) for label, path in (added or {}).items()}
    if base is None:
        about = saved.config["base_model"]
        labels = about.get("labels")
        base = pretrained.load(model or about["id"], dtype=dtype or saved.dtype, labels=labels)
    loaded, tokenizer = base
    road = RoadModel.from_pretrained(loaded, folder)
    for label, path in others.items():
        road.add_checkpoint(path, label)
    return road, tokenizer


def base_of(name_or_path: str) -> tuple[str, str]:
    """The base model of a checkpoint, and its dtype in the training ("auto" if unknown).

    Args:
        name_or_path: A folder or hub id.

    Raises:
        RoadError: where it can't be read.
    """
    saved = read(folder_of(name_or_path))
    return str(saved.config["base_model"]["id"]), saved.dtype


def names_of(name_or_path: str, added: Mapping[str, str] | None = None) -> list[str]:
    """The names that compositions may use, before a model is loaded.

    Args:
        name_or_path: A folder or hub id of a checkpoint.
        added: Further checkpoints, by label.

    Raises:
        RoadError: where a checkpoint can't be read, or a label is no plain word.
    """
    for label in added or {}:
        check_label(label)
    names = read(folder_of(name_or_path)).names()
    for label, path in (added or {}).items():
        names += read(folder_of(path)).names(label)
    return names
