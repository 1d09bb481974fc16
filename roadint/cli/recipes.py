"""`roadint recipes`: the presets, and every setting of one with what it means."""

import inspect
import re
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.options import Json
from roadint.cli.output import console, print_json, print_line


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A preset or a YAML file, to see its settings.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes, or all settings of one and what they mean."""
    if name is None:
        from roadint.recipes.library import presets

        told = {preset: _purpose(path.read_text("utf-8")) for preset, path in presets().items()}
        if as_json:
            print_json(told)
            return
        table = Table("recipe", "what it is for")
        for preset, purpose in told.items():
            table.add_row(preset, purpose)
        console.print(table)
        print_line("roadint recipes NAME: its settings; roadint train NAME --out runs/mine")
        return
    from roadint.recipes.recipe import Recipe

    recipe = Recipe.load(name)
    if as_json:
        print_json(recipe.record())
        return
    meanings = _meanings()
    table = Table("setting", "value", "meaning")
    for section, settings in recipe.record().items():
        for setting, value in settings.items():
            shown = "–" if value in (None, [], {}) else str(value)
            table.add_row(f"{section}.{setting}", shown, meanings[section].get(setting, ""))
    console.print(table)


def _purpose(text: str) -> str:
    """The first sentence of a preset's first comment."""
    comment = " ".join(re.findall(r"^# ?(.*)", text.partition("\nmodel:")[0], re.MULTILINE))
    return re.split(r"\.\s|: +--", comment + " ")[0].strip()


def _meanings() -> dict[str, dict[str, str]]:
    """What settings mean, by section and name: the docstrings of sections and kinds."""
    from roadint.interventions.registry import kinds
    from roadint.recipes.edit import InterventionSettings
    from roadint.recipes.names import SECTIONS

    told = {section: _documented(settings) for section, settings in SECTIONS.items()}
    edits: list[Any] = [InterventionSettings, *kinds().values()]
    for edit in edits:
        told["edit"] |= _documented(edit) | told["edit"]
    return told


def _documented(documented: type) -> dict[str, str]:
    """`name: what it is` under Args and Attributes of a class, each as one line."""
    text = inspect.getdoc(documented) or ""
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}
