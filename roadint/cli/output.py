"""What a command prints on stdout: tables and lines for people, JSON for machines."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from roadint.files.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A table in a pipe or a file is not cut at 80 columns.
# Names, paths and errors of users have brackets, which are no markup.
console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)


def print_line(text: str) -> None:
    """Print a line as it is, without colours in its numbers."""
    console.print(text, highlight=False, soft_wrap=True)


def tested(summary: Mapping[str, Any]) -> str:
    """The metric on test rows, of a task's summary, as text."""
    metric, rows = summary["metric"], summary["rows"]
    if "tests" not in summary:
        return f"{metric} on the {rows['test']} test rows {100 * summary['test']:.1f}"
    each = ", ".join(f"{name} {100 * score:.1f}" for name, score in summary["tests"].items())
    return f"{metric} on test rows {each}, their mean {100 * summary['test']:.1f}"


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(_json(value))


def report_json(report: Mapping[str, Any] | Sequence[Any], out: Path | None, printed: bool) -> None:
    """Write a report as indented JSON, to a file, to stdout or to both.

    Args:
        report: Plain JSON values.
        out: The file, where one is wanted.
        printed: Whether stdout gets it.
    """
    if out is not None:
        write_whole(out, _json(report) + "\n")
    if printed:
        print_json(report)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a picture in the format that the path ends with."""
    figure.savefig(path, dpi=150)


def _json(value: Any) -> str:
    """JSON, which has no numbers that are not finite: they are text, "nan", as in checkpoints."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_as_text(value), indent=2, ensure_ascii=False)


def _as_text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_text(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_text(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
