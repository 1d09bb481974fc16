"""The notebooks: each runs from top to bottom, and shows what is stored in it.

What is compared is what does not depend on the machine: how many outputs a cell has and of which
types, figures' sizes, and of texts the lines with numbers left out, up to the first colon: the
labels of tables, of mappings and of answers. A cell with the tag "exact" shows the very same text.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_output

BOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d[\d,.]*(?:e[-+]?\d+)?")


def labels(text: str) -> list[str]:
    """What stays of a text from machine to machine."""
    found = []
    for line in text.strip().splitlines():
        if not line.strip().startswith("<Figure"):
            line = line.split("|")[1] if line.startswith("|") else line.split(":")[0]
            line = NUMBER.sub("#", line)
        found.append(" ".join(line.split()))
    return found


def shown(cell: Any) -> list[Any]:
    """What a cell shows, to be compared; what it warns of is left out."""
    stored = (lambda text: text) if "exact" in cell.metadata.get("tags", ()) else labels
    printed = "".join(each.text for each in cell.outputs if each.get("name") == "stdout")
    displayed = [each for each in cell.outputs if each.output_type != "stream"]
    return [
        stored(printed),
        *(
            (each.output_type, sorted(each.data), [stored(text) for text in texts(each.data)])
            for each in displayed
        ),
    ]


def texts(data: dict[str, str]) -> Iterable[str]:
    return [data[kind] for kind in sorted(data) if kind.startswith("text/")]


def code_of(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_five() -> None:
    assert [book.stem[:2] for book in BOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_stored_with_outputs_and_small(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = code_of(book)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert all(len(cell.source.splitlines()) <= 25 for cell in code)  # verbs are the library's
    shows = ("display_data", "execute_result")
    assert sum(output.output_type in shows for cell in code for output in cell.outputs) >= 2
    assert path.stat().st_size < 500_000
    assert "find_spec" in code[0].source  # the first cell installs where nothing is installed


def test_another_output_is_another_and_another_time_is_not() -> None:
    def cell(text: str, *tags: str, kind: str = "text/plain") -> Any:
        output = new_output("execute_result", {kind: text}, execution_count=1)
        return new_code_cell("x", outputs=[output], metadata={"tags": list(tags)})

    one = shown(cell("{'seconds': 43.5,\n 'loss': 1.5}"))
    assert one == shown(cell("{'seconds': 9,\n 'loss': -1e-3}"))
    assert one != shown(cell("{'seconds': 43.5}"))
    assert one != shown(cell("{'minutes': 43.5,\n 'loss': 1.5}"))
    assert shown(cell("1280", "exact")) != shown(cell("1281", "exact"))
    assert shown(cell("| a | 1 |")) != shown(cell("| b | 1 |"))
    assert shown(cell("<Figure size 6x3>")) != shown(cell("<Figure size 6x4>"))
    assert shown(cell("x")) != shown(cell("x", kind="text/markdown"))
    assert shown(cell("x")) != shown(new_code_cell("x"))


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom_and_shows_what_is_stored(path: Path, tmp_path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    stored = [shown(cell) for cell in code_of(book)]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=900, kernel_name="python3", resources=where).execute()
    for index, (cell, before) in enumerate(zip(code_of(book), stored, strict=True)):
        assert shown(cell) == before, f"code cell {index + 1} of {path.name} is stale"
