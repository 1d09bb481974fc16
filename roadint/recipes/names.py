"""The names of a recipe's settings: nested in sections, dotted, or short."""

from collections.abc import Mapping
from typing import Any

from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.recipes.edit import EditSection, edit_names
from roadint.recipes.section import Section
from roadint.recipes.sections import DataSection, ModelSection, OptimisationSection, TaskSection

SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "edit": EditSection,
    "data": DataSection,
    "optimisation": OptimisationSection,
    "task": TaskSection,
}
# What other libraries call settings.
_ELSEWHERE = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup_steps",
    "gradient_clipping": "max_grad_norm",
    "max_seq_length": "max_length",
    "layer": "layers",
    "target_modules": "targets",
}
Nested = dict[str, dict[str, Any]]


def nested(settings: Mapping[str, Any]) -> Nested:
    """Settings by section, then by name; a section that is not mentioned is empty.

    A name is short ("lr", "rows"; "model", "task" and "data" for the first setting of these
    sections), dotted ("optimisation.lr"), or a section with a mapping of names. A mapping called
    "data" is the section where it has a name of the section, and data sets otherwise.

    Args:
        settings: The settings of a file or of a user.

    Raises:
        RoadError: where a name is unknown, or two names mean the same setting.

    Examples:
        >>> nested({"lr": 1e-2, "model": "gemma-3-270m", "edit": {"layers": 9}})["optimisation"]
        {'lr': 0.01}
    """
    short = _short_names()
    result: Nested = {section: {} for section in SECTIONS}
    for name, value in _flattened(settings):
        section, setting = _place(name, short)
        if setting in result[section]:
            raise RoadError(
                f"recipe setting {section}.{setting} is said twice, as "
                f"{quoted(result[section][setting])} and {quoted(value)}: expected one of them"
            )
        result[section][setting] = value
    return result


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint's recipe by short name, as the first checkpoints have them."""
    if not isinstance(record.get("model"), Mapping):
        return dict(record)
    return {
        SECTIONS[section].short(setting) if section in SECTIONS else setting: value
        for section, values in record.items()
        if isinstance(values, Mapping)
        for setting, value in values.items()
    }


def _short_names() -> dict[str, tuple[str, str]]:
    """Short name → section and setting; a kind's argument never hides another setting."""
    names = {setting: ("edit", setting) for setting in edit_names()}
    for section, kind in SECTIONS.items():
        names |= {kind.short(setting): (section, setting) for setting in kind.model_fields}
    return names


def _flattened(settings: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    flattened: list[tuple[Any, Any]] = []
    for name, value in settings.items():
        if _is_section(name, value):
            flattened += [(f"{name}.{setting}", inner) for setting, inner in dict(value).items()]
        else:
            flattened.append((name, value))
    return flattened


def _is_section(name: Any, value: Any) -> bool:
    if name not in SECTIONS or not isinstance(value, (Mapping, Section)):
        return False
    is_data_sets = name == "data" and isinstance(value, Mapping)
    return not is_data_sets or any(setting in value for setting in DataSection.model_fields)


def _place(name: Any, short: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Section and setting of a name, short or dotted."""
    if isinstance(name, str) and name in short:
        return short[name]
    section, _, setting = name.partition(".") if isinstance(name, str) else ("", "", "")
    known = edit_names() if section == "edit" else SECTIONS.get(section, Section).model_fields
    if setting in known:
        return section, setting
    dotted = [f"{section}.{setting}" for section, setting in short.values()]
    meant = setting if setting in short else _ELSEWHERE.get(str(name), "")
    expected = listing(sorted(known)) if known else "those that `roadint recipes custom` tells"
    raise RoadError(
        f"recipe has no setting {quoted(name)}: expected one of {expected}"
        f"{f'; did you mean {meant!r}?' if meant else did_you_mean(name, [*short, *dotted])}"
    )
