"""Where rows come from: bundled samples, local files, the hub's data sets, the caller's lists.

A source is one of
- "bundled:german", "bundled:english", "bundled:french", "bundled:list", "bundled:json",
  "bundled:upper", "bundled:sentence", each with its "…_dev"; "bundled:cross_dev" and
  "bundled:cross_french_dev": written for this project;
- a path to JSON Lines, JSON, Parquet or CSV with the fields of a row (roadint.data.rows); the cells
  of CSV are text, whatever they look like;
- "hub:LeoLM/HellaSwag_de" (English context → German ending) and "hub:openbmb/UltraFeedback"
  (instruction → its best-rated answer), the paper's two (section 4.3), or any other data set of the
  hub that has the fields;
- rows that are in memory already.

A row without text is skipped, and a line of the log says how many were: rows with an empty
instruction or output, a label that names no ending, or no rated answer. A row with a missing field,
or a number in place of text, is a RoadError.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from roadint.data.formats import FORMATS, UNREADABLE, read_lines, read_rows
from roadint.data.hub import HUB_FORMS, hub_rows
from roadint.data.rows import NEEDED, OPTIONAL, Row, RowForm, UnusableRow, checked_row
from roadint.errors import RoadError, did_you_mean, first_line, listing, quoted
from roadint.files.paths import is_file, is_folder, path_of

DataSource = str | Path | Iterable[Mapping[str, Any]]

_Checked = TypeVar("_Checked")

logger = logging.getLogger(__name__)
_USABLE = "usable"
_SAMPLES = Path(str(files("roadint.data") / "samples"))


def load_rows(source: DataSource, limit: int | None = None, seed: int | None = None) -> list[Row]:
    """The rows of a source.

    Args:
        source: The source.
        limit: How many usable rows to take, from the first; all by default. No more are read.
        seed: Draws a random sample of `limit` rows from all rows instead, always the same one.

    Returns:
        At least one row; one line of the log says how many were skipped, and why.

    Raises:
        RoadError: where the source or a row can't be read, or no row is left.

    Examples:
        >>> [row["output"] for row in load_rows([{"instruction": "1 + 1?", "output": "2"}])]
        ['2']
    """
    return collect(source, limit, seed, checked_row)


def collect(
    source: DataSource,
    limit: int | None,
    seed: int | None,
    check: Callable[[Any, RowForm | None], _Checked],
    optional: Sequence[str] = OPTIONAL,
) -> list[_Checked]:
    """The rows of a source in whatever form.

    Args:
        source: As in `load_rows`.
        limit: As in `load_rows`.
        seed: As in `load_rows`.
        check: Makes one of a raw row and the form of its source, as `checked_row` does.
        optional: Columns of a table to read beside those of every row.

    Raises:
        RoadError: as `load_rows`.
    """
    rows, skipped = _collect(source, limit, seed, check, optional)
    if skipped:
        logger.warning("%s", skipped)
    return rows


def check_sources(sources: Mapping[str, DataSource], limit: int | None = None) -> None:
    """Check that `load_rows` can read every source; what it skips is not logged.

    Args:
        sources: By name.
        limit: As in `load_rows`.

    Raises:
        RoadError: as `load_rows`.
    """
    for source in sources.values():
        _collect(source, limit, None, checked_row, OPTIONAL)


def load_prompts(source: str | Path, limit: int | None = None) -> list[str]:
    """The prompts of a text file, one a line.

    Args:
        source: The file, or "bundled:prompts", or "bundled:prompts_paper", the paper's nine.
        limit: How many prompts to take, from the first; all by default.

    Raises:
        RoadError: where the file can't be read or has no prompt.
    """
    check_limit("max_prompts", limit)
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
            f"prompts {quoted(str(source))} can't be read ({first_line(error)}): "
            "expected a text file in UTF-8, one prompt a line"
        ) from None
    if not prompts:
        raise RoadError(f"prompts {quoted(str(source))} holds no prompt: expected one a line")
    return prompts


def _bundled(name: str, suffix: str) -> Path:
    path = _SAMPLES / f"{name}{suffix}"
    if not is_file(path):
        known = sorted(path.stem for path in _SAMPLES.glob(f"*{suffix}"))
        raise RoadError(
            f"no bundled samples {quoted(name)}: "
            f"expected one of {listing(known)}{did_you_mean(name, known)}"
        )
    return path


def _collect(
    source: DataSource,
    limit: int | None,
    seed: int | None,
    check: Callable[[Any, RowForm | None], _Checked],
    optional: Sequence[str],
) -> tuple[list[_Checked], str]:
    """The rows, and a line for the log about skipped ones; empty where none were skipped."""
    check_limit("rows", limit)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise RoadError(f"rows_seed={quoted(seed)}: expected a whole number")
    name, raw_rows, form = _open(source, optional)
    counts: Counter[str] = Counter()
    usable = _usable(name, raw_rows, lambda raw: check(raw, form), counts)
    rows = _chosen(usable, limit, seed)
    seen = counts.total()
    skipped = {reason: count for reason, count in counts.items() if reason != _USABLE}
    reasons = ", ".join(f"{count:,} with {reason}" for reason, count in skipped.items())
    if not rows:
        held = (
            f"no row that can be used: all {seen:,} are skipped, {reasons}" if seen else "no rows"
        )
        raise RoadError(
            f"{name} holds {held}; expected at least one with 'instruction' and 'output'"
        )
    line = f"skipped {sum(skipped.values()):,} of {seen:,} rows of {name}: {reasons}"
    return rows, line if skipped else ""


def _usable(
    name: str, raw_rows: Iterable[Any], check: Callable[[Any], _Checked], counts: Counter[str]
) -> Iterator[_Checked]:
    """The usable rows; counts them, and the reasons for which others are skipped."""
    for index, raw in enumerate(raw_rows):
        try:
            row = check(raw)
        except UnusableRow as error:
            counts[str(error)] += 1
        except RoadError as error:
            raise RoadError(f"row {index} of {name} {error}") from None
        else:
            counts[_USABLE] += 1
            yield row


def _chosen(rows: Iterator[_Checked], limit: int | None, seed: int | None) -> list[_Checked]:
    """The first rows, or a sample; reservoir sampling makes every row as likely to be in it."""
    if limit is None or seed is None:
        return list(islice(rows, limit))
    sample: list[_Checked] = []
    draw = random.Random(seed)
    for count, row in enumerate(rows, 1):
        if len(sample) < limit:
            sample.append(row)
        elif (index := draw.randrange(count)) < limit:
            sample[index] = row
    return sample


def _open(source: DataSource, optional: Sequence[str]) -> tuple[str, Iterable[Any], RowForm | None]:
    """The source's name in messages, its raw rows, and their form."""
    if not isinstance(source, (str, Path)):
        try:
            return "the given rows", iter(source), None
        except TypeError:
            raise RoadError(
                f"data source {quoted(source)} holds no rows: "
                "expected a list of rows, a file, or a name"
            ) from None
    text = str(source)
    kind, _, rest = text.partition(":")
    if kind == "bundled" and rest:
        return quoted(text), read_rows(_bundled(rest, ".jsonl"), NEEDED), None
    if kind == "hub" and rest:
        return quoted(text), hub_rows(rest), HUB_FORMS.get(rest)
    path = Path(text)
    check_data_file(path, quoted(text))
    return quoted(text), read_rows(path, NEEDED, optional), None


def check_data_file(path: Path, name: str) -> None:
    """Check that a data file is there, and that its format is known.

    Args:
        path: The file.
        name: How messages name it.

    Raises:
        RoadError: where it is not.
    """
    if path.suffix.lower() not in FORMATS:
        raise RoadError(
            f"data source {name} is not understood: "
            f"expected a {', '.join(FORMATS)} file, 'bundled:german' or 'hub:OWNER/NAME'"
        )
    if is_file(path):
        return
    if is_folder(path):
        raise RoadError(f"data file {name} is a folder: expected a file in it")
    beside = path.parent.glob(f"*{path.suffix}") if is_folder(path.parent) else ()
    near = did_you_mean(path.name, (file.name for file in beside))
    raise RoadError(f"data file {name} does not exist{near}")


def check_limit(what: str, limit: int | None) -> None:
    """Check how many rows or prompts to take.

    Args:
        what: The name of the number in messages.
        limit: The number, where there is one.

    Raises:
        RoadError: where it is no number, or below 1.
    """
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise RoadError(f"{what}={quoted(limit)}: expected a whole number")
    if limit < 1:
        raise RoadError(f"{what}={limit} selects nothing: expected at least 1")
