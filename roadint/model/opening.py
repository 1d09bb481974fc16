"""A checkpoint on its base model, opened by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.grammar.composition import Composition
from roadint.model.checkpoint import folder_of, read
from roadint.model.pretrained import load
from roadint.model.road_model import RoadModel
from roadint.model.saving import check_label


def open_checkpoint(
    checkpoint: str,
    model: str | None,
    compose: Sequence[str] | None,
    added: Mapping[str, str] | None = None,
    base: tuple[Any, Any] | None = None,
    dtype: str | None = None,
) -> tuple[Any, Any]:
    """The checkpoint on its base model, and the tokenizer; the compositions are checked before the model is loaded.

    added: label → another checkpoint beside it. base: a model and its tokenizer that are loaded already. dtype: of the base model;
    that of the training by default.
    """
    for label in added or {}:
        check_label(label)
    folder = folder_of(checkpoint)
    saved = read(folder)
    config = saved.config
    others = {label: folder_of(each) for label, each in (added or {}).items()}
    names = [
        *saved.names(),
        *(name for label, each in others.items() for name in read(each).names(label)),
    ]
    for each in compose or ():
        Composition.parse(each, names)
    about = config["base_model"]
    loaded, tokenizer = base or load(
        model or about["id"], dtype=dtype or saved.dtype, labels=about.get("labels")
    )
    road = RoadModel.from_pretrained(loaded, folder)
    for label, other in others.items():
        road.add_checkpoint(other, label)
    return road, tokenizer
