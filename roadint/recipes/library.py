"""The presets, and the settings in a recipe's file; without loading what a recipe is made of."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.files.paths import is_file, path_of
from roadint.files.yaml import read_yaml

PRESETS = Path(str(files("roadint.recipes"))) / "presets"


def presets() -> dict[str, Path]:
    """The files of the presets by name, in alphabetical order."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def read_recipe(name: str | Path) -> Mapping[str, Any]:
    """The settings of a preset or a YAML file, as they are written.

    Args:
        name: A preset such as "composition", or a YAML file.

    Raises:
        RoadError: where there is no such recipe, or it is no mapping.
    """
    path = path_of("recipe", name)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS / f"{name}.yaml"
    if not is_file(path):
        known = list(presets())
        raise RoadError(
            f"no recipe {quoted(str(name))}: expected a YAML file or one of "
            f"{listing(known)}{did_you_mean(str(name), known)}"
        )
    content = read_yaml(path, "recipe")
    if not isinstance(content, (Mapping, type(None))):
        raise RoadError(
            f"recipe {quoted(str(path))} is a {type(content).__name__}: expected a mapping of "
            "settings"
        )
    return content or {}
