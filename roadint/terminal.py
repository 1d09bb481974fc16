"""What the commands of the command line share: options, tables on stdout, JSON for machines."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from roadint.errors import RoadError
from roadint.files import write_whole

# A table in a pipe or a file is not cut at 80 columns.
console = Console(width=None if sys.stdout.isatty() else 160)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="NAME=SOURCE, repeatable: a .jsonl, .parquet or .csv file, bundled:… or hub:…"),
]
Base = Annotated[str | None, typer.Option("--model", help="Base model instead of the checkpoint's or recipe's own.")]
Composed = Annotated[
    list[str] | None, typer.Option("--compose", help="A composition, repeatable: none, german, 'german + 0.5*english'.")
]
Added = Annotated[
    list[str] | None,
    typer.Option("--add", help="LABEL=CHECKPOINT, repeatable: another one to compose with, its subspaces are NAME@LABEL."),
]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="Text file with one prompt a line.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Length of an answer, in tokens.")]
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


def check_picture(option: str, path: Path | None) -> None:
    """Raises RoadError where a figure could not be written."""
    check_folder(option, path)
    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise RoadError(f"{option} {path}: expected a .png, .svg or .pdf file")


def report_json(value: Any, out: Path | None, printed: bool) -> None:
    """A report as indented JSON, in a file and on stdout, where wanted."""
    if out is not None:
        write_whole(out, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    if printed:
        print_json(value)


def print_json(value: Any) -> None:
    """On stdout, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


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
    from roadint.checkpoint import folder_of, read
    from roadint.composition import Composition
    from roadint.model import RoadModel
    from roadint.pretrained import load

    folder = folder_of(checkpoint)
    saved = read(folder)
    config = saved.config
    others = {label: folder_of(each) for label, each in (added or {}).items()}
    names = [*saved.names(), *(name for label, each in others.items() for name in read(each).names(label))]
    for each in compose or ():
        Composition.parse(each, names)
    about = config["base_model"]
    loaded, tokenizer = base or load(model or about["id"], dtype=dtype or saved.dtype, labels=about.get("labels"))
    road = RoadModel.from_pretrained(folder, loaded)
    for label, other in others.items():
        road.add_checkpoint(other, label)
    return road, tokenizer
