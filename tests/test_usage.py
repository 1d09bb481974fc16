"""What a wrong use of the command line says: one line on stderr, nothing loaded. And that the package stays a house."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

import roadint
from roadint.cli.main import main

PACKAGE = Path(roadint.__file__).parent


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate"], "Missing argument 'checkpoint'"),
        (["zz"], "No such command 'zz'"),
        (["bench", "zz"], "No such command 'zz'"),
        (["eval", "run", "--rows", "0"], "Invalid value for '--rows'"),
        (
            ["generate", "run", "hi", "--max-new-tokens", "x"],
            "Invalid value for '--max-new-tokens'",
        ),
        (["generate", "run", "--template", "chat"], "No such option: --template"),
        (["train", "composition", "--out", "a\0b"], "'--out'"),
        (
            [
                "train",
                "composition",
                "--out",
                "run",
                "--data",
                "none=bundled:german",
                "--model",
                "nowhere",
            ],
            "'none' trains nothing",
        ),
        (["generate", "nowhere", "hi", "--add", "a b=run"], "label 'a b'"),
        (["generate", "nowhere", "hi", "--add", "all=run"], "label 'all'"),
    ],
)
def test_one_line(
    arguments: list[str], said: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["roadint", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, errors = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("roadint: ")
    assert said.lower() in errors.lower()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["--help"], 0), (["train", "--help"], 0), ([], 2)]
)
def test_help_stays_help(arguments: list[str], code: int, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["roadint", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    assert "".join(capsys.readouterr()).strip()


def test_a_run_may_go_into_the_working_directory(monkeypatch: Any, tmp_path: Path) -> None:
    from roadint.cli.checks import check_folder

    monkeypatch.chdir(tmp_path)
    check_folder("--out", Path("."))


def test_the_top_of_the_package_holds_few_rooms() -> None:
    """`make lint` checks that no import points up; this is their number."""
    rooms = [
        path
        for path in PACKAGE.iterdir()
        if not path.name.startswith("_") and path.name != "py.typed"
    ]
    assert len(rooms) <= 26, sorted(path.name for path in rooms)
    files = {path.name for path in rooms if path.is_file()}
    assert files <= {"errors.py", "progress.py", "version.py"}


def test_files_are_short() -> None:
    """Docstrings, comments and blank lines apart."""
    lines = {str(path.relative_to(PACKAGE)): code_lines(path) for path in PACKAGE.rglob("*.py")}
    assert not {path: count for path, count in lines.items() if count > 400}


def code_lines(path: Path) -> int:
    source = path.read_text(encoding="utf-8")
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            documented |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documented
        for number, line in lines
    )


def test_the_table_of_public_names_is_what_type_checkers_see() -> None:
    imported = {}
    for node in ast.walk(ast.parse(Path(roadint.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module != "typing":
            for alias in node.names:
                if alias.asname is not None:
                    imported[alias.asname] = str(node.module).removeprefix("roadint.")
    assert imported == roadint._HOMES
    assert {name: getattr(roadint, name) for name in roadint.__all__}.keys() == set(roadint.__all__)
