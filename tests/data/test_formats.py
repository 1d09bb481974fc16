"""Rows as they are written: text stays text, names are no patterns, what is broken is named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from roadint.data import formats
from roadint.data.sources import load_prompts, load_rows
from roadint.errors import RoadError


def line(output: Any, **more: Any) -> str:
    return json.dumps({"instruction": "a", "output": output, **more}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    "cells", [["4", "7.0"], ["None", "null"], ["N/A", "nan"], ["True", "no"], ["2020-01-01", "1e5"]]
)
def test_cells_are_text(tmp_path: Path, cells: list[str]) -> None:
    (tmp_path / "rows.csv").write_text(
        "instruction,output\n" + "".join(f"a,{cell}\n" for cell in cells)
    )
    (tmp_path / "rows.jsonl").write_text("".join(map(line, cells)))
    pyarrow.parquet.write_table(
        pyarrow.table({"instruction": ["a", "a"], "output": cells}), tmp_path / "rows.parquet"
    )
    for path in tmp_path.iterdir():
        assert [row["output"] for row in load_rows(path)] == cells


@pytest.mark.parametrize("name", ["a[1].jsonl", "*.jsonl", "data?.jsonl", "{a,b}.jsonl"])
def test_names_are_no_patterns(tmp_path: Path, name: str) -> None:
    for other in ("a1.jsonl", "data1.jsonl", "a.jsonl"):
        (tmp_path / other).write_text(line("other"))
    with pytest.raises(RoadError, match="does not exist"):
        load_rows(tmp_path / name)
    (tmp_path / name).write_text(line("this"))
    assert load_rows(tmp_path / name) == [{"instruction": "a", "output": "this"}]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_line_ends(tmp_path: Path, ends: str, mark: str) -> None:
    texts = ["one\u2028line", "a\u0085b", "c\x1cd"]
    for suffix, content in (
        ("jsonl", "".join(map(line, texts))),
        ("csv", "instruction,output\n\n" + "".join(f"a,{text}\n" for text in texts)),
        ("json", "\n [" + ",\n".join(map(line, texts)) + "\n]\n"),
    ):
        path = tmp_path / f"rows.{suffix}"
        path.write_bytes((mark + content.replace("\n", ends)).encode())
        assert [row["output"] for row in load_rows(path)] == texts
    path = tmp_path / "prompts.txt"
    path.write_bytes((mark + ends.join([*texts, "e\x0cf", ""])).encode())
    assert load_prompts(path) == [*texts, "e\x0cf"]
    assert load_prompts(path, 2) == texts[:2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"instruction": "a", "output": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "can't be read as json",
        ),
        ("a.json", "[" + "[" * 100_000, "can't be read as json"),
        ("a.json", '[{"instruction": "a", "output": "b"}', "the list has no end"),
        ("a.json", '[{"instruction": "a", "output": "b"}] x', "something follows the list"),
        ("a.json", '[{"instruction": "a", "output": "b"},]', "can't be read as json"),
        ("a.json", '[{"instruction": "a", "output": "b"} {}]', "expected ',' or ']'"),
        ("a.json", "[]", "holds no rows"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "can't be read as json .line 1"),
        ("a.jsonl", line("a") + "{", "can't be read as json .line 2"),
        ("a.jsonl", line("a").encode("utf-16"), "can't be read as json"),
        ("a.jsonl", b"\x00\x01\x02", "can't be read as json"),
        ("a.jsonl", '{"instruction": "a", "output": "\\ud800"}', "row 0 of .* half a letter"),
        (
            "a.csv",
            "instruction,output\na,b,c\n",
            "row 0, which ends in line 2, has 3 cells for 2 columns",
        ),
        ("a.csv", 'instruction,output\na,b\n"a\n\n', "line 4: unexpected end of data"),
        ("a.csv", "instruction,output\na\n", "has 1 cells for 2 columns"),
        ("a.csv", "instruction,output,output\na,b,c\n", "2 columns 'output'"),
        ("a.csv", "a,b\n", "holds no rows"),
        ("a.csv", "a,b\nc,d\n", "row 0 of .* has no field 'instruction': it has 'a', 'b'"),
        ("a.csv", b"instruction,output\na,\x00\n", "can't be read as csv"),
        ("a.csv", "instruction,output\na,b\n".encode("utf-16"), "can't be read as csv"),
        ("a.parquet", b"PAR1 and nothing", "can't be read as parquet"),
    ],
)
def test_broken_files_are_told(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RoadError, match=message) as error:
        load_rows(tmp_path / name)
    assert len(str(error.value).replace(str(tmp_path), "")) < 500


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "binary.txt").write_bytes(b"a\x00b")
    for source in (
        5,
        None,
        2.5,
        tmp_path / "folder.csv",
        "a\0.csv",
        "a" * 5000 + ".csv",
        "bundled:" + "a" * 5000,
        {"a": 1},
    ):
        with pytest.raises(RoadError):
            load_rows(source)  # type: ignore[arg-type]
    for prompts in (5, tmp_path, tmp_path / "binary.txt", "a\0.txt", "a" * 5000):
        with pytest.raises(RoadError):
            load_prompts(prompts)  # type: ignore[arg-type]
    for limit in (0, -1, 1.5, True, "2"):
        with pytest.raises(RoadError, match="rows="):
            load_rows("bundled:german", limit)  # type: ignore[arg-type]
        with pytest.raises(RoadError, match="max_prompts="):
            load_prompts("bundled:prompts", limit)  # type: ignore[arg-type]


def test_a_list_of_any_size_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a piece of the file ends with."""
    rows = [{"instruction": f"{i}", "output": 'ä]}",[{ \\' * (i + 1)} for i in range(20)]
    (tmp_path / "rows.json").write_text(
        json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    for piece in (1, 2, 3, 7, 64, 10_000):
        monkeypatch.setattr(formats, "_PIECE", piece)
        assert load_rows(tmp_path / "rows.json") == rows
        assert load_rows(tmp_path / "rows.json", 3) == rows[:3]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_limit_reads_no_more_than_it_asks_for(tmp_path: Path, suffix: str) -> None:
    """What follows is broken, or, of a Parquet file, 400 MB of text."""
    path = tmp_path / f"rows.{suffix}"
    good = line("b") * 2
    if suffix == "parquet":
        table = pyarrow.table(
            {
                "instruction": pyarrow.array(["a" * 1000] * 400_000),
                "output": pyarrow.array(["b"] * 400_000),
            }
        )
        pyarrow.parquet.write_table(table, path, compression="zstd")
    else:
        path.write_text(
            {
                "jsonl": good + "{",
                "json": "[" + ",".join(good.splitlines()) + ", {",
                "csv": "instruction,output\na,b\na,b\nbroken\n",
            }[suffix]
        )
    code = (
        "import resource; from roadint.data.sources import load_rows; load_rows([{'instruction': 'a', 'output': 'b'}]);"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"assert len(load_rows({str(path)!r}, 2)) == 2;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    if suffix != "parquet":
        assert len(load_rows(path, 2)) == 2
        return
    grown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 200e6


def test_rows_in_memory_are_taken_one_by_one() -> None:
    def endless() -> Any:
        while True:
            yield {"instruction": "a", "output": "b"}

    assert len(load_rows(endless(), 3)) == 3
