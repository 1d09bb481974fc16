"""What the commands of the command line share: options, tables on stdout, JSON for machines."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from roadint.errors import RoadError

# A table in a pipe or a file is not cut at 80 columns.
console = Console(width=None if sys.stdout.isatty() else 160)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="NAME=SOURCE, repeatable: a .jsonl, .parquet or .csv file, bundled:… or hub:…"),
]
Rows = Annotated[int | None, typer.Option(min=1, help="Only the first rows of each data set.")]


def pairs(given: Sequence[str] | None, option: str) -> Mapping[str, str]:
    """NAME=VALUE options as a mapping. Raises RoadError for anything else."""
    found = {}
    for each in given or ():
        name, separator, value = each.partition("=")
        if not separator or not name.strip() or not value:
            raise RoadError(f"{option} {each!r}: expected NAME=VALUE")
        found[name.strip()] = value
    return found


def check_folder(option: str, path: Path | None) -> None:
    """Raises RoadError where a file could not be written, before the work that it is for."""
    if path is not None and not path.parent.is_dir():
        raise RoadError(f"{option} {path}: the folder {path.parent} does not exist")


def report_json(value: Any, out: Path | None, printed: bool) -> None:
    """A report as indented JSON, in a file and on stdout, where wanted."""
    if out is not None:
        out.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if printed:
        print_json(value)


def print_json(value: Any) -> None:
    """On stdout, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
