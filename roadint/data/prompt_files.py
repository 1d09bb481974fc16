"""Prompts from files: plain text, or instructions with an input in JSON and tables."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from roadint.data.formats import FORMATS, read_rows
from roadint.data.prompts import Prompt, parts_of
from roadint.data.rows import OPTIONAL, field_of
from roadint.data.sources import check_data_file, check_limit, load_prompts
from roadint.errors import RoadError, quoted
from roadint.files.paths import path_of

# "dataset" is AlpacaEval's name of a prompt's origin
_KEPT = ("instruction", *OPTIONAL, "history", "dataset")


def read_prompts(source: str | Path, limit: int | None = None) -> list[Prompt]:
    """The prompts of a file.

    Args:
        source: A text file, or bundled prompts (`roadint.data.sources.load_prompts`), or a .json,
            .jsonl, .parquet or .csv file of rows with the field "instruction" and maybe "input",
            "history" and "dataset", as AlpacaEval's prompts and the rows of a data set are.
        limit: How many prompts to take, from the first; all by default.

    Returns:
        Texts, or mappings of these fields without the empty ones.

    Raises:
        RoadError: where the file can't be read, or has no prompt.
    """
    path = path_of("prompts", source)
    if path.suffix.lower() not in FORMATS or str(source).startswith("bundled:"):
        return list(load_prompts(source, limit))
    check_limit("max_prompts", limit)
    check_data_file(path, quoted(str(source)))
    rows = enumerate(read_rows(path, ("instruction",), _KEPT))
    prompts = list(islice((_prompt(index, row, str(source)) for index, row in rows), limit))
    if not prompts:
        raise RoadError(f"prompts {quoted(str(source))} hold no row: expected at least one")
    return prompts


def _prompt(index: int, row: Any, source: str) -> Prompt:
    try:
        if not isinstance(row, Mapping):
            raise RoadError(f"is {type(row).__name__}: expected a field 'instruction'")
        field_of(row, "instruction")
        kept = {name: row[name] for name in _KEPT if row.get(name) not in (None, "")}
    except RoadError as error:
        raise RoadError(f"row {index} of prompts {quoted(source)} {error}") from None
    try:
        parts_of(kept)
    except RoadError as error:
        raise RoadError(f"row {index} of prompts {quoted(source)}: {error}") from None
    return kept
