"""Where rows come from: the bundled samples, local files, the hub's data sets of the paper, or the caller's own lists.

A row is {"instruction": …, "output": …}, both plain text. A source is one of
- "bundled:german", "bundled:english", "bundled:german_dev", "bundled:english_dev", "bundled:cross_dev": written for this project;
- a path to JSON Lines, JSON, Parquet or CSV with those two fields;
- "hub:LeoLM/HellaSwag_de" (English context → German ending) and "hub:openbmb/UltraFeedback" (instruction → its best-rated answer),
  the paper's two (section 4.3), or any other hub data set that has the two fields;
- rows that are in memory already.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets

from roadint.errors import RoadError, did_you_mean, first_line, listing

Row = dict[str, str]
Source = str | Path | Iterable[Mapping[str, Any]]

_SAMPLES = files("roadint.data") / "samples"
_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_rows(source: Source, limit: int | None = None) -> list[Row]:
    """The first `limit` rows of a source (all by default). Raises RoadError for a source or a row that can't be read."""
    if limit is not None and limit < 1:
        raise RoadError(f"rows={limit} selects nothing: expected at least 1")
    if isinstance(source, (str, Path)):
        name, raw = str(source), _read(str(source))
    else:
        name, raw = "the given rows", list(source)
    rows = [_check(row, f"row {index} of {name}") for index, row in enumerate(raw if limit is None else raw[:limit])]
    if not rows:
        raise RoadError(f"{name} holds no rows: expected at least one with 'instruction' and 'output'")
    return rows


def load_prompts(source: str | Path, limit: int | None = None) -> list[str]:
    """One prompt a line, from "bundled:prompts", "bundled:prompts_paper" (the paper's nine) or a text file. Raises RoadError."""
    bundled = str(source).removeprefix("bundled:")
    path = _bundled(bundled, ".txt") if bundled != str(source) else Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RoadError(f"prompts {str(source)!r} can't be read ({error}): expected a text file with one prompt a line") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise RoadError(f"prompts {str(source)!r} holds no prompt: expected one a line")
    return prompts[:limit]


def _read(source: str) -> list[Any]:
    kind, _, rest = source.partition(":")
    if kind == "bundled" and rest:
        return _load_file(str(_bundled(rest, ".jsonl")), "json")
    if kind == "hub" and rest:
        return _load_hub(rest)
    path = Path(source)
    if path.suffix not in _FORMATS:
        raise RoadError(
            f"data source {source!r} is not understood: expected a {', '.join(_FORMATS)} file, 'bundled:german' or 'hub:OWNER/NAME'"
        )
    if not path.is_file():
        beside = [each.name for each in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        raise RoadError(f"data file {source!r} does not exist{did_you_mean(path.name, beside)}")
    return _load_file(str(path), _FORMATS[path.suffix])


def _load_file(path: str, kind: str) -> list[Any]:
    try:
        # In memory: a private copy, so that an edited file is never served from a cache.
        return list(datasets.load_dataset(kind, data_files=path, split="train", streaming=True))
    except Exception as error:
        raise RoadError(f"data file {path!r} can't be read as {kind} ({first_line(error.__cause__ or error)})") from error


def _load_hub(name: str) -> list[Any]:
    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:
        raise RoadError(
            f"data set {name!r} can't be loaded from the hub ({first_line(error)}): give a local file instead"
        ) from error
    convert = HUB_FORMS.get(name)
    return [convert(row) for row in rows] if convert else list(rows)


def from_hellaswag_de(row: Mapping[str, Any]) -> Row:
    """LeoLM/HellaSwag_de: the English context, and the German ending that its label names."""
    return {"instruction": row["ctx"], "output": row["endings_de"][int(row["label"])]}


def from_ultrafeedback(row: Mapping[str, Any]) -> Row:
    """openbmb/UltraFeedback: the instruction, and the completion with the highest overall score."""
    best = max(row["completions"], key=lambda completion: float(completion.get("overall_score") or 0))
    return {"instruction": row["instruction"], "output": best["response"]}


HUB_FORMS: dict[str, Callable[[Mapping[str, Any]], Row]] = {
    "LeoLM/HellaSwag_de": from_hellaswag_de,
    "openbmb/UltraFeedback": from_ultrafeedback,
}


def _bundled(name: str, suffix: str) -> Path:
    path = Path(str(_SAMPLES)) / f"{name}{suffix}"
    if not path.is_file():
        known = sorted(each.stem for each in Path(str(_SAMPLES)).glob(f"*{suffix}"))
        raise RoadError(f"no bundled samples {name!r}: expected one of {listing(known)}{did_you_mean(name, known)}")
    return path


def _check(row: Any, where: str) -> Row:
    if not isinstance(row, Mapping):
        raise RoadError(f"{where} is {type(row).__name__}: expected fields 'instruction' and 'output'")
    for field in ("instruction", "output"):
        if field not in row:
            raise RoadError(f"{where} has no field {field!r}: it has {listing(row)}{did_you_mean(field, map(str, row))}")
        if not isinstance(row[field], str) or not row[field].strip():
            raise RoadError(f"{where} has an empty or non-text {field!r}: {row[field]!r}")
    return {"instruction": row["instruction"], "output": row["output"]}
