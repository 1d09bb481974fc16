"""Options that commands share, and reading of NAME=VALUE."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from roadint.errors import RoadError, quoted

CheckpointName = Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="NAME=SOURCE, repeatable: a .jsonl, .parquet or .csv file, bundled:… or hub:…",
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--model", help="Base model instead of the checkpoint's or recipe's own."),
]
Compositions = Annotated[
    list[str] | None,
    typer.Option(
        "--compose", help="A composition, repeatable: none, german, 'german + 0.5*english'."
    ),
]
Expected = Annotated[
    list[str] | None,
    typer.Option(
        "--expect",
        help="SUBSPACE=PROPERTY, repeatable, what a success with the subspace has: numbered_list, "
        "json_object, upper_case, one_sentence, short, german, the code of another language, "
        "or nothing. By default what its name says: german, french, list, json, upper, sentence.",
    ),
]
Added = Annotated[
    list[str] | None,
    typer.Option(
        "--add",
        help=(
            "LABEL=CHECKPOINT, repeatable: another one to compose with, its subspaces are "
            "NAME@LABEL."
        ),
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="Text file with one prompt a line; or a .json, .jsonl, .parquet or .csv file of rows "
        "with 'instruction' and maybe 'input'.",
    ),
]
MaxPrompts = Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Length of an answer, in tokens.")]
MaxRows = Annotated[int | None, typer.Option(min=1, help="Only the first rows of each data set.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="NAME=VALUE, repeatable: a setting of the recipe, as lr or optimisation.lr."
    ),
]
Folder = Annotated[Path, typer.Option(help="Folder for the result; a new or an empty one.")]
ReportFile = Annotated[
    Path | None, typer.Option(help="Also write the report, as JSON, to this file.")
]
Plot = Annotated[
    Path | None, typer.Option(help="Write a picture of the report (.png, .svg, .pdf).")
]


def named_values(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read NAME=VALUE options.

    Args:
        texts: The texts of the option, if there are any.
        option: The option, for messages.

    Raises:
        RoadError: where a text has another form, or two texts have one name.
    """
    values: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        name = name.strip()
        if not separator or not name or not value:
            raise RoadError(
                f"{option} {quoted(text)}: expected NAME=VALUE, such as {option} name={text}"
            )
        if name in values:
            raise RoadError(
                f"{option} names {quoted(name)} twice, as {quoted(values[name])} and "
                f"{quoted(value)}: expected one of them"
            )
        values[name] = value
    return values


def overrides(settings: Sequence[str] | None, **options: Any) -> Mapping[str, Any]:
    """The settings of a recipe that --set and other options change.

    Args:
        settings: The texts of --set.
        options: Settings that have an option themselves; None changes nothing.

    Raises:
        RoadError: where --set and an option say the same setting.
    """
    changes: dict[str, Any] = dict(named_values(settings, "--set"))
    for name, value in options.items():
        if value is None:
            continue
        if name in changes:
            raise RoadError(
                f"--set {name}={quoted(changes[name])} and --{name.replace('_', '-')} {value}: "
                "expected one of them"
            )
        changes[name] = value
    return changes


def refuse_settings(settings: Sequence[str] | None, **instead: str) -> None:
    """Refuse settings of --set that a command gives values itself.

    Args:
        settings: The texts of --set.
        instead: Setting → the option that says it here.

    Raises:
        RoadError: for one of them.
    """
    from roadint.recipes.names import nested

    for section in nested(named_values(settings, "--set")).values():
        for name in instead.keys() & section.keys():
            raise RoadError(f"--set {name} would not act here: expected {instead[name]}")
