"""The rows of a local file, one by one, as they are written: no types are guessed, nothing is read before it is asked for."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from roadint.errors import RoadError, first_line, quoted

_LONGEST = 1 << 26  # characters of a row: a file without line ends is no reason to fill the memory
_PIECE = 1 << 18  # characters of a JSON list that are read at once
_BATCH = 256  # rows of a Parquet file that are read at once
_BLANK = re.compile(r"[ \t\r\n]*")


# What reading a file raises where it is none, or not of its kind; ValueError is also what json and UTF-8 raise.
UNREADABLE = (OSError, ValueError, RecursionError, pyarrow.ArrowException)


def read_rows(path: Path, needed: Sequence[str], more: Sequence[str] = ()) -> Iterator[Any]:
    """The rows of a file whose suffix is one of FORMATS, mappings where it is in order. Raises RoadError where it can't be read.

    needed, more: a Parquet file that has all of the needed columns leaves out those that are in neither.
    """
    kind, read = FORMATS[path.suffix.lower()]
    try:
        yield from read(path, needed, more)
    except UNREADABLE as error:
        raise RoadError(
            f"data file {quoted(str(path))} can't be read as {kind} ({first_line(error)})"
        ) from error


def read_lines(path: Path) -> Iterator[str]:
    r"""The lines of a text file in UTF-8, with or without a byte-order mark, without their ends: \n, \r\n or \r, and nothing else.

    Raises UNREADABLE.
    """
    with path.open(encoding="utf-8-sig") as file:
        while line := file.readline(_LONGEST):
            if len(line) == _LONGEST or "\0" in line:
                raise ValueError(
                    "a line without end" if len(line) == _LONGEST else "NUL, as in no text"
                )
            yield line.removesuffix("\n")


def json_rows(path: Path) -> Iterator[Any]:
    """The values of a JSON list, or of JSON Lines, whichever the file is. Raises UNREADABLE."""
    with path.open(encoding="utf-8-sig") as file:
        while (sign := file.read(1)).isspace():
            pass
        if sign == "[":
            yield from _json_list(file)
            return
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _json_list(file: TextIO) -> Iterator[Any]:
    """The values of a list whose opening bracket was read, whatever its size."""
    decode = json.JSONDecoder().raw_decode
    text, place, wanted = "", 0, "value or ]"
    while True:
        place = _BLANK.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too
        if place == len(text):
            text, place = file.read(_PIECE), 0
            if not text:
                raise ValueError("the list has no end")
        elif text[place] == "]" and "]" in wanted:
            if (text[place + 1 :] + file.read(_PIECE)).strip():
                raise ValueError("something follows the list")
            return
        elif text[place] == "," and "," in wanted:
            place, wanted = place + 1, "value"
        elif "value" not in wanted:
            raise ValueError(
                f"{quoted(text[place])} follows a row of the list: expected ',' or ']'"
            )
        else:
            text, place, value = _json_value(file, text, place, decode)
            wanted = ", or ]"
            yield value


def _json_value(
    file: TextIO, text: str, place: int, decode: Callable[[str, int], tuple[Any, int]]
) -> tuple[str, int, Any]:
    """The value at `place` of a text that the file goes on with; returns the text as read, where the value ends, the value."""
    while True:
        try:
            value, end = decode(text, place)
        except json.JSONDecodeError:  # it may be cut short
            more = file.read(max(_PIECE, len(text) - place))
            if not more or len(text) - place > _LONGEST:
                raise
            text, place = text[place:] + more, 0
        else:
            return text, end, value


def _csv(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        rows = _told_by_line(reader)
        header = next(rows, [])
        _check_columns(header)
        for index, cells in enumerate(rows):
            where = f"row {index}, which ends in line {reader.line_num},"
            if len(cells) != len(header):
                raise ValueError(f"{where} has {len(cells)} cells for {len(header)} columns")
            if any("\0" in cell for cell in cells):
                raise ValueError(f"{where} holds NUL, as no text does")
            yield dict(zip(header, cells, strict=True))


def _told_by_line(reader: Any) -> Iterator[list[str]]:
    """The rows that are not blank."""
    try:
        yield from (cells for cells in reader if cells)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _parquet(path: Path, needed: Sequence[str], more: Sequence[str]) -> Iterator[dict[str, Any]]:
    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
        names = file.schema_arrow.names
        _check_columns(names)
        columns = (
            [name for name in names if name in (*needed, *more)]
            if set(needed) <= set(names)
            else None
        )
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            yield from batch.to_pylist()


def _check_columns(names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1 and name:
            raise ValueError(f"it has {count} columns {quoted(name)}: expected one of each name")


FORMATS: dict[str, tuple[str, Callable[[Path, Sequence[str], Sequence[str]], Iterator[Any]]]] = {
    ".jsonl": ("json", lambda path, *_: json_rows(path)),
    ".json": ("json", lambda path, *_: json_rows(path)),
    ".parquet": ("parquet", _parquet),
    ".csv": ("csv", lambda path, *_: _csv(path)),
}
