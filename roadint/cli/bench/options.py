"""Options that benchmarks share."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from roadint.cli.checks import check_file, check_picture
from roadint.cli.options import named_values
from roadint.errors import RoadError, check_known, first_line, quoted

Model = Annotated[
    str, typer.Option(help="Hub id, folder or short name (gemma-3-270m, smollm2-135m).")
]
Shape = Annotated[
    str | None,
    typer.Option(
        help="Random weights in a known shape instead of a model: llama-7b, smollm2-135m, …"
    ),
]
Layer = Annotated[
    int | None, typer.Option(min=0, help="Where the edit is; the middle layer by default.")
]
Runs = Annotated[int, typer.Option(min=1, help="Of every system, in turns.")]


def check_shape(shape: str | None) -> None:
    """Check the name of a shape.

    Args:
        shape: The name; None where there is none.

    Raises:
        RoadError: where it is unknown.
    """
    from roadint.bench.shapes import SHAPES

    if shape is not None:
        check_known("shape", shape, SHAPES)


def check_outputs(out: Path | None, plot: Path | None = None) -> None:
    """Check the files of a report before hours of measuring.

    Args:
        out: The file of the report.
        plot: The file of its picture.

    Raises:
        RoadError: where a file can't be written.
    """
    check_file("--out", out)
    check_picture("--plot", plot)


def rates_of(texts: list[str] | None) -> dict[str, float]:
    """Read the METHOD=RATE of --rate.

    Args:
        texts: The texts of the option, if there are any.

    Raises:
        RoadError: where a rate is no number above 0.
    """
    rates: dict[str, float] = {}
    for name, text in named_values(texts, "--rate").items():
        try:
            rates[name] = float(text)
        except ValueError as error:
            raise RoadError(
                f"--rate {quoted(texts)}: expected METHOD=NUMBER ({first_line(error)})"
            ) from None
        if not 0 < rates[name] < math.inf:
            raise RoadError(f"--rate.{name}={rates[name]} must be above 0")
    return rates


def kept_report(out: Path | None, resume: bool) -> dict[str, Any] | None:
    """The report that a benchmark goes on with.

    Args:
        out: The file of the report.
        resume: Whether --resume is said.

    Returns:
        None where it is not said, or not a run is done.

    Raises:
        RoadError: where there is no --out, or its file holds no report.
    """
    if not resume:
        return None
    if out is None:
        raise RoadError("--resume goes on with the report in --out: expected --out FILE")
    return read_report(out, "--out") if out.exists() else None


def read_report(path: Path, option: str) -> dict[str, Any]:
    """The report in a file.

    Args:
        path: The file.
        option: The option that names it, for messages.

    Raises:
        RoadError: where it holds none.
    """
    from roadint.files.readers import read_json

    report = read_json(path)
    if not isinstance(report, dict) or not {"job", "runs", "cases"} <= set(report):
        raise RoadError(
            f"{option} {quoted(str(path))} holds no report of a benchmark with runs: expected "
            "another file"
        )
    return report
