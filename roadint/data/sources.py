"""Where rows come from: the bundled samples, local files, the hub's data sets of the paper, or the caller's own lists.

A row is {"instruction": …, "output": …}, both plain text, and "input" where it has one, as Alpaca's rows have. A source is one of
- "bundled:german", "bundled:english", "bundled:german_dev", "bundled:english_dev", "bundled:cross_dev": written for this project;
- a path to JSON Lines, JSON, Parquet or CSV with those fields; the cells of CSV are text, whatever they look like;
- "hub:LeoLM/HellaSwag_de" (English context → German ending) and "hub:openbmb/UltraFeedback" (instruction → its best-rated answer),
  the paper's two (section 4.3), or any other hub data set that has the fields;
- rows that are in memory already.

A row that lacks its text is skipped, and one line says how many were: an empty instruction or output, a label that names no ending,
no rated answer. What is no row at all (a missing field, a number for text) ends with RoadError.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets

from roadint.data.formats import FORMATS, UNREADABLE, read_lines, read_rows
from roadint.data.prompts import is_whole
from roadint.errors import RoadError, did_you_mean, first_line, listing, quoted
from roadint.files.paths import is_file, is_folder, path_of

Row = dict[str, str]
Source = str | Path | Iterable[Mapping[str, Any]]
Form = Callable[[Mapping[str, Any]], Mapping[str, Any]]

logger = logging.getLogger(__name__)
_SAMPLES = files("roadint.data") / "samples"
_NEEDED, _MORE = ("instruction", "output"), ("input",)


class Unusable(RoadError):
    """A row that is skipped; the message says why in a few words, the same for all such rows."""


def load_rows(source: Source, limit: int | None = None, seed: int | None = None) -> list[Row]:
    """The first `limit` rows of a source, all by default; with `seed`, so many at random, the same ones every time.

    A limit counts the rows that are kept, and nothing is read beyond it, unless a sample is drawn.
    Raises RoadError for a source or a row that can't be read, and where no row is left.
    """
    rows, told = _collect(source, limit, seed)
    if told:
        logger.warning("%s", told)
    return rows


def check_sources(sources: Mapping[str, Source], limit: int | None = None) -> None:
    """Raises RoadError where `load_rows` would for one of these; says nothing of what it skips."""
    for source in sources.values():
        _collect(source, limit, None)


def load_prompts(source: str | Path, limit: int | None = None) -> list[str]:
    """One prompt a line, from "bundled:prompts", "bundled:prompts_paper" (the paper's nine) or a text file. Raises RoadError."""
    _check_limit("max_prompts", limit)
    path_of("prompts", source)
    bundled = str(source).removeprefix("bundled:")
    path = _bundled(bundled, ".txt") if bundled != str(source) else Path(str(source))
    prompts: list[str] = []
    try:
        for line in read_lines(path):
            if line.strip():
                prompts.append(line.strip())
            if len(prompts) == limit:
                break
    except UNREADABLE as error:
        raise RoadError(
            f"prompts {quoted(str(source))} can't be read ({first_line(error)}): expected a text file in UTF-8, one prompt a line"
        ) from None
    if not prompts:
        raise RoadError(f"prompts {quoted(str(source))} holds no prompt: expected one a line")
    return prompts


def from_hellaswag_de(row: Mapping[str, Any]) -> Row:
    """LeoLM/HellaSwag_de: the English context, and the German ending that its label names. Raises Unusable where it names none."""
    context, endings, label = (_field(row, name) for name in ("ctx", "endings_de", "label"))
    named = (
        {str(place): ending for place, ending in enumerate(endings)}
        if isinstance(endings, (list, tuple))
        else {}
    )
    if str(label) not in named:  # the labels of the test split are empty
        raise Unusable("a label that names no ending")
    return {"instruction": context, "output": named[str(label)]}


def from_ultrafeedback(row: Mapping[str, Any]) -> Row:
    """openbmb/UltraFeedback: the instruction, and the completion with the highest overall score. Raises Unusable without one."""
    instruction, completions = (_field(row, name) for name in ("instruction", "completions"))
    listed = completions if isinstance(completions, (list, tuple)) else ()
    rated = [each for each in listed if isinstance(each, Mapping) and _score(each) is not None]
    if not rated:
        raise Unusable("no rated completion")
    return {"instruction": instruction, "output": max(rated, key=_score).get("response")}  # type: ignore[arg-type, dict-item]


HUB_FORMS: dict[str, Form] = {
    "LeoLM/HellaSwag_de": from_hellaswag_de,
    "openbmb/UltraFeedback": from_ultrafeedback,
}


def _bundled(name: str, suffix: str) -> Path:
    path = Path(str(_SAMPLES)) / f"{name}{suffix}"
    if not is_file(path):
        known = sorted(each.stem for each in Path(str(_SAMPLES)).glob(f"*{suffix}"))
        raise RoadError(
            f"no bundled samples {quoted(name)}: expected one of {listing(known)}{did_you_mean(name, known)}"
        )
    return path


def _collect(source: Source, limit: int | None, seed: int | None) -> tuple[list[Row], str]:
    """The rows, and a line about those that were skipped, or an empty one."""
    _check_limit("rows", limit)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise RoadError(f"rows_seed={quoted(seed)}: expected a whole number")
    name, raw, form = _open(source)
    draw = None if seed is None else random.Random(seed)
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    seen = 0
    for seen, each in enumerate(raw, 1):
        try:
            row = _row(each, form)
        except Unusable as error:
            skipped[str(error)] += 1
            continue
        except RoadError as error:
            raise RoadError(f"row {seen - 1} of {name} {error}") from None
        if limit is None or len(rows) < limit:
            rows.append(row)
        elif (
            draw and (place := draw.randrange(seen - skipped.total())) < limit
        ):  # every kept row is as likely to be in the sample
            rows[place] = row
        if not draw and len(rows) == limit:
            break
    reasons = ", ".join(f"{count:,} with {reason}" for reason, count in skipped.items())
    if not rows:
        told = (
            f"no row that can be used: all {seen:,} are skipped, {reasons}" if seen else "no rows"
        )
        raise RoadError(
            f"{name} holds {told}; expected at least one with 'instruction' and 'output'"
        )
    return (
        rows,
        f"skipped {skipped.total():,} of {seen:,} rows of {name}: {reasons}" if skipped else "",
    )


def _open(source: Source) -> tuple[str, Iterable[Any], Form | None]:
    """How messages call it, its rows as they are, and what makes rows of ours of them."""
    if not isinstance(source, (str, Path)):
        try:
            return "the given rows", iter(source), None
        except TypeError:
            raise RoadError(
                f"data source {quoted(source)} holds no rows: expected a list of rows, a file, or a name"
            ) from None
    text = str(source)
    name = quoted(text)
    kind, _, rest = text.partition(":")
    if kind == "bundled" and rest:
        return name, read_rows(_bundled(rest, ".jsonl"), _NEEDED), None
    if kind == "hub" and rest:
        return name, _hub_rows(rest), HUB_FORMS.get(rest)
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise RoadError(
            f"data source {name} is not understood: expected a {', '.join(FORMATS)} file, 'bundled:german' or 'hub:OWNER/NAME'"
        )
    if not is_file(path):
        if is_folder(path):
            raise RoadError(f"data file {name} is a folder: expected a file in it")
        beside = (
            [each.name for each in path.parent.glob(f"*{path.suffix}")]
            if is_folder(path.parent)
            else []
        )
        raise RoadError(f"data file {name} does not exist{did_you_mean(path.name, beside)}")
    return name, read_rows(path, _NEEDED, _MORE), None


def _hub_rows(name: str) -> Iterator[Any]:
    try:
        yield from datasets.load_dataset(name, split="train")
    except Exception as error:  # whatever the hub, the network and decoding raise
        raise RoadError(
            f"data set {quoted(name)} can't be loaded from the hub ({first_line(error)}): give a local file instead"
        ) from error


def _row(row: Any, form: Form | None) -> Row:
    """One row, checked. Raises Unusable where its text is missing; messages of RoadError go on after the row's name."""
    if not isinstance(row, Mapping):
        raise RoadError(f"is {type(row).__name__}: expected fields 'instruction' and 'output'")
    found = form(row) if form else row
    texts = {name: _text(name, _field(found, name)) for name in _NEEDED} | {
        name: _text(name, found.get(name)) for name in _MORE
    }
    if not texts["instruction"].strip():
        texts["instruction"], texts["input"] = texts["input"], ""
    for name in _NEEDED:
        if not texts[name].strip():
            raise Unusable(f"an empty or non-text {name!r}")
    return {name: text for name, text in texts.items() if name in _NEEDED or text.strip()}


def _field(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise RoadError(
            f"has no field {name!r}: it has {listing(row)}{did_you_mean(name, map(str, row))}"
        )
    return row[name]


def _text(name: str, value: Any) -> str:
    if value is None or (
        isinstance(value, float) and value != value
    ):  # what tables have where nothing is
        return ""
    if not isinstance(value, str):
        raise RoadError(f"has an empty or non-text {name!r}: {quoted(value)}; expected text")
    if not is_whole(value):
        raise RoadError(
            f"has a {name!r} with half a letter in it, which no tokenizer reads: {quoted(value)}"
        )
    return value


def _score(completion: Mapping[str, Any]) -> float | None:
    """What a completion was rated, where it was."""
    given = completion.get("overall_score")
    try:
        score = float(given) if isinstance(given, (int, float, str)) else math.nan
    except ValueError:  # "N/A"
        return None
    return score if math.isfinite(score) else None


def _check_limit(what: str, limit: int | None) -> None:
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise RoadError(f"{what}={quoted(limit)}: expected a whole number")
    if limit < 1:
        raise RoadError(f"{what}={limit} selects nothing: expected at least 1")
