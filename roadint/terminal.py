"""What the commands of the command line share: options, tables on stdout, JSON for machines."""

import json
import sys
from collections.abc import Mapping, Sequence
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


def print_json(value: Any) -> None:
    """On stdout, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
