"""The notebooks: every one runs from top to bottom here, and is stored with the outputs of such a run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

BOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_there_are_five() -> None:
    assert [book.stem[:2] for book in BOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_stored_with_outputs_and_small(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert sum(output.output_type in ("display_data", "execute_result") for cell in code for output in cell.outputs) >= 2
    assert path.stat().st_size < 500_000
    assert "find_spec" in code[0].source  # the first cell installs where nothing is installed


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
