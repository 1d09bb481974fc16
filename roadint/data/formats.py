"""Readers of local files (JSON, JSON Lines, Parquet, CSV), which yield rows one by one.

They guess no types, and read a row only when it is asked for.
"""

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

_LONGEST = 1 << 26  # characters of a row: a file without line ends must not fill the memory
_PIECE = 1 << 18  # characters of a JSON list that are read at once
_BATCH = 256  # rows of a Parquet file that are read at once
_BLANK = re.compile(r"[ \t\r\n]*")

UNREADABLE = (OSError, ValueError, RecursionError, pyarrow.ArrowException)
"""What readers raise for a file that is missing, damaged or in another format."""


def read_rows(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Any]:
    """The rows of a file: mappings, unless the file is no table.

    Args:
        path: A file whose suffix is one of FORMATS.
        needed: The columns to read. Other columns of a Parquet file are read only where one of
            these is missing.
        optional: Columns to read where they exist.

    Raises:
        RoadError: where the file can't be read.
    """
    kind, read = FORMATS[path.suffix.lower()]
    try:
        yield from read(path, needed, optional)
    except UNREADABLE as error:
        raise RoadError(
            f"data file {quoted(str(path))} can't be read as {kind} ({first_line(error)})"
        ) from error


def read_lines(path: Path) -> Iterator[str]:
    r"""The lines of a text file in UTF-8, with or without a byte-order mark.

    Lines end with \n, \r\n or \r, and nothing else; the ends are left out.

    Raises:
        UNREADABLE: where it is no text file.
    """
    with path.open(encoding="utf-8-sig") as file:
        while line := file.readline(_LONGEST):
            if len(line) == _LONGEST:
                raise ValueError("a line without end")
            if "\0" in line:
                raise ValueError("NUL, as in no text")
            yield line.removesuffix("\n")


def json_rows(path: Path) -> Iterator[Any]:
    """The values of a JSON list or of JSON Lines, whichever the file is.

    Raises:
        UNREADABLE: where it is neither.
    """
    with path.open(encoding="utf-8-sig") as file:
        while (first := file.read(1)).isspace():
            pass
        if first == "[":
            yield from _json_list(file)
            return
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _json_list(file: TextIO) -> Iterator[Any]:
    """The values of a list, read piece by piece, after its opening bracket."""
    text, start, expected = "", 0, "value or ]"
    while True:
        start = _BLANK.match(text, start).end()  # type: ignore[union-attr]  # matches nothing too
        if start == len(text):
            text, start = file.read(_PIECE), 0
            if not text:
                raise ValueError("the list has no end")
        elif text[start] == "]" and "]" in expected:
            if (text[start + 1 :] + file.read(_PIECE)).strip():
                raise ValueError("something follows the list")
            return
        elif text[start] == "," and "," in expected:
            start, expected = start + 1, "value"
        elif "value" not in expected:
            raise ValueError(
                f"{quoted(text[start])} follows a row of the list: expected ',' or ']'"
            )
        else:
            value, text, start = _json_value(file, text, start)
            expected = ", or ]"
            yield value


def _json_value(file: TextIO, text: str, start: int) -> tuple[Any, str, int]:
    """The value at `start` of the text, which the file continues; the text then, and its end."""
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:  # it may be cut short
            more = file.read(max(_PIECE, len(text) - start))
            if not more or len(text) - start > _LONGEST:
                raise
            text, start = text[start:] + more, 0
        else:
            return value, text, end


def _csv(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        lines = _filled_lines(reader)
        header = next(lines, [])
        _check_columns(header)
        for index, cells in enumerate(lines):
            row = f"row {index}, which ends in line {reader.line_num},"
            if len(cells) != len(header):
                raise ValueError(f"{row} has {len(cells)} cells for {len(header)} columns")
            if any("\0" in cell for cell in cells):
                raise ValueError(f"{row} holds NUL, as no text does")
            yield dict(zip(header, cells, strict=True))


def _filled_lines(reader: Any) -> Iterator[list[str]]:
    """The cells of every line that is not blank; what the reader raises names the line."""
    try:
        yield from (cells for cells in reader if cells)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _parquet(
    path: Path, needed: Sequence[str], optional: Sequence[str]
) -> Iterator[dict[str, Any]]:
    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
        names = file.schema_arrow.names
        _check_columns(names)
        columns = None
        if set(needed) <= set(names):
            columns = [name for name in names if name in (*needed, *optional)]
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
"""Suffix → the name of the format in messages, and the reader."""
