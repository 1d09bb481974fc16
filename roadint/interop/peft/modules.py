"""The modules that PEFT's `target_modules` and `modules_to_save` name."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from roadint.adapters.adapter import RoadAdapter
from roadint.architecture.layers import named_modules
from roadint.errors import RoadError, quoted
from roadint.interop.peft.files import PREFIX, VALUES

# The modules that PEFT adds to modules_to_save by itself.
_OF_TASKS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def saved_modules(
    model: nn.Module,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> dict[str, nn.Module]:
    """The model's modules that `modules_to_save` names and a checkpoint has, by path.

    Args:
        model: The base model.
        config: The checkpoint's config.
        shapes: The shapes of the checkpoint's tensors, without those of RoAd layers.
        folder: The checkpoint's name in messages.

    Raises:
        RoadError: where a module is not the model's, or is inside another one that is saved.
    """
    modules: dict[str, nn.Module] = {}
    named = config.get("modules_to_save") or []
    names = (*named, *_OF_TASKS.get(config.get("task_type") or "", ()))
    for path, module in named_modules(model):
        if not _ends_with(path, names):
            continue
        state = module.state_dict()
        wrong = [
            key for key, value in state.items() if shapes.get(f"{path}.{key}") != tuple(value.shape)
        ]
        asked_for = _ends_with(path, named) or any(key.startswith(f"{path}.") for key in shapes)
        if wrong and asked_for:
            raise RoadError(
                f"{folder}: {path}.{wrong[0]} is missing or of another shape than the model's: "
                "load its own class of model"
            )
        if state and not wrong:
            modules[path] = module
    for path in modules:
        if any(other.startswith(f"{path}.") for other in modules):
            raise RoadError(
                f"{folder}: modules_to_save names {path} and modules inside it: "
                "expected one of them"
            )
    return modules


def _ends_with(path: str, names: Iterable[str]) -> bool:
    """PEFT takes a name of modules_to_save for the end of a path, in the middle of a word too."""
    return bool(path) and f"{PREFIX}{path}".endswith(tuple(names))


def check_targets(
    model: nn.Module, config: Mapping[str, Any], paths: Collection[str], owner: object
) -> None:
    """Check that PEFT would put the adapter on the layers that have values, and on no others.

    Args:
        model: The base model.
        config: The checkpoint's config.
        paths: The layers that have values.
        owner: The name of the checkpoint or adapter in messages.

    Raises:
        RoadError: where they differ.
    """
    names = config.get("target_modules")
    if not isinstance(names, list):
        return  # a regular expression, or PEFT's choice for the architecture: values decide
    saved = [name.split(".") for name in config.get("modules_to_save") or []]
    exact, ends = set(names), tuple(f".{name}" for name in names)
    targeted = {
        path
        for path, module in named_modules(model)
        if isinstance(module, nn.Linear)
        and (path in exact or path.endswith(ends))
        and not any(_contains(path.split("."), name) for name in saved)
    }
    for path in sorted(targeted ^ set(paths)):
        lack = "has no values for it" if path in targeted else "does not name it in target_modules"
        raise RoadError(
            f"{owner}: {path} is a layer of the adapter in PEFT or in the checkpoint alone: "
            f"the other {lack}"
        )


def _contains(parts: list[str], name: list[str]) -> bool:
    return any(parts[start : start + len(name)] == name for start in range(len(parts)))


def check_names(model: nn.Module, adapter: RoadAdapter) -> None:
    """Check that the names of an adapter's modules name no other modules in PEFT.

    Raises:
        RoadError: where a name means another module too.
    """
    heads = list(adapter.head_paths)
    config = {"target_modules": list(adapter.layout.paths), "modules_to_save": heads}
    check_targets(model, config, adapter.layout.paths, adapter.name)
    for path, _ in named_modules(model):
        if _ends_with(path, heads) and path not in heads:
            raise RoadError(
                f"PEFT would take the head of {adapter.name!r} for {path} too, which ends alike: "
                "save_pretrained keeps it"
            )


def check_taken(
    keys: Iterable[str], paths: Iterable[str], heads: Iterable[str], folder: Path
) -> None:
    """Check that every tensor of a checkpoint belongs to the adapter.

    Args:
        keys: The tensors' names in the base model.
        paths: The RoAd layers.
        heads: The modules that were saved.
        folder: The checkpoint's name in messages.

    Raises:
        RoadError: where one is left.
    """
    known = {f"{path}{ending}" for path in paths for ending in VALUES}
    inside = tuple(f"{path}." for path in heads)
    for key in keys:
        if key not in known and not key.startswith(inside):
            raise RoadError(
                f"{folder} holds {quoted(key)}, which this model has no place for: "
                "load its own class of model"
            )
