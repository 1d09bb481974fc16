"""What the commands of the command line share: options, tables on stdout, JSON for machines."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from roadint.errors import RoadError, first_line, listing, quoted
from roadint.files.atomic import write_whole
from roadint.files.paths import is_folder

# A table in a pipe or a file is not cut at 80 columns.
console = Console(width=None if sys.stdout.isatty() else 160)

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
Composed = Annotated[
    list[str] | None,
    typer.Option(
        "--compose", help="A composition, repeatable: none, german, 'german + 0.5*english'."
    ),
]
Added = Annotated[
    list[str] | None,
    typer.Option(
        "--add",
        help="LABEL=CHECKPOINT, repeatable: another one to compose with, its subspaces are NAME@LABEL.",
    ),
]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Text file with one prompt a line.")
]
NewTokens = Annotated[int, typer.Option(min=1, help="Length of an answer, in tokens.")]
Rows = Annotated[int | None, typer.Option(min=1, help="Only the first rows of each data set.")]


def pairs(given: Sequence[str] | None, option: str) -> Mapping[str, str]:
    """NAME=VALUE options as a mapping. Raises RoadError for anything else, and for a name that is given twice."""
    found: dict[str, str] = {}
    for each in given or ():
        name, separator, value = each.partition("=")
        name = name.strip()
        if not separator or not name or not value:
            raise RoadError(f"{option} {quoted(each)}: expected NAME=VALUE")
        if name in found:
            raise RoadError(
                f"{option} names {quoted(name)} twice, as {quoted(found[name])} and {quoted(value)}: expected one of them"
            )
        found[name] = value
    return found


def overrides(settings: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """What --set and other options change in a recipe. Raises RoadError where both say the same setting."""
    found: dict[str, Any] = dict(pairs(settings, "--set"))
    for name, value in options.items():
        if value is not None and name in found:
            raise RoadError(
                f"--set {name}={quoted(found[name])} and --{name.replace('_', '-')} {value}: expected one of them"
            )
        if value is not None:
            found[name] = value
    return found


def check_file(option: str, path: Path | None) -> None:
    """Raises RoadError where a file could not be written, before the work that it is for."""
    if path is None:
        return
    if is_folder(path):
        raise RoadError(
            f"{option} {quoted(str(path))} is a folder: expected a file, in it or elsewhere"
        )
    if not is_folder(path.parent):
        raise RoadError(
            f"{option} {quoted(str(path))[1:-1]}: the folder {quoted(str(path.parent))[1:-1]} does not exist"
        )
    try:
        if path.exists():
            with path.open("ab"):
                pass
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RoadError(
            f"{option} {quoted(str(path))} can't be written ({first_line(error)})"
        ) from None


def check_folder(option: str, path: Path, *, new: bool = False) -> None:
    """Raises RoadError where a folder could not be made or written in, before the work that it is for; new: or is not empty."""
    try:
        there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
        if not there.is_dir():
            raise RoadError(
                f"{option} {quoted(str(path))}: {quoted(str(there))} is a file, expected a folder"
            )
        if new and there == path and any(path.iterdir()):
            raise RoadError(f"{option} {quoted(str(path))} is not empty: expected a new folder")
        with tempfile.TemporaryDirectory(dir=there, prefix=".roadint.") as scratch:
            longest = max(len(os.fsencode(name)) for name in (path.name, *path.parts))
            (
                Path(scratch) / ("a" * longest)
            ).touch()  # a name may be longer than the file system takes
        if "\0" in str(path):
            raise ValueError("no file has NUL in its name")
    except (OSError, ValueError) as error:
        raise RoadError(
            f"{option} {quoted(str(path))} can't be a folder of ours ({first_line(error)}): expected another one"
        ) from None


def check_picture(option: str, path: Path | None) -> None:
    """Raises RoadError where a figure could not be written."""
    check_file(option, path)
    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise RoadError(f"{option} {quoted(str(path))[1:-1]}: expected a .png, .svg or .pdf file")


def check_compositions(data: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises RoadError where a data set is not called by what it trains, a composition of these names."""
    from roadint.grammar.composition import Composition

    for name in data:
        if not Composition.parse(name, names).terms:
            raise RoadError(
                f"data set {quoted(name)} trains nothing: expected a composition of {listing(names)}"
            )


def report_json(value: Any, out: Path | None, printed: bool) -> None:
    """A report as indented JSON, in a file and on stdout, where wanted."""
    if out is not None:
        write_whole(out, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    if printed:
        print_json(value)


def print_json(value: Any) -> None:
    """On stdout, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
