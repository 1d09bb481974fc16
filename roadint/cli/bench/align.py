"""`roadint bench align`: interchange accuracy and step times."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.bench.options import check_outputs
from roadint.cli.options import Json, ReportFile
from roadint.cli.output import console, print_line, report_json


def align(
    width: Annotated[int, typer.Option(min=4, help="Width of the hidden layer.")] = 2048,
    steps: Annotated[int, typer.Option(min=1, help="Of every system, in turns.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a step.")] = 256,
    task_steps: Annotated[
        int, typer.Option(min=1, help="To train the network that is looked into.")
    ] = 600,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of network and data.")] = 0,
    rival: Annotated[
        list[str] | None,
        typer.Option(help="Only these classes of pyvene, repeatable: RotatedSpace, …"),
    ] = None,
    out: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Interchange accuracy and step times of RoadInterchange and pyvene's DAS classes.

    The task is hierarchical equality.
    """
    from roadint.bench.align import bench_align

    check_outputs(out)
    report = bench_align(
        width,
        rival,
        steps=steps,
        batch_size=batch_size,
        task_steps=task_steps,
        seed=seed,
        quiet=as_json,
    )
    report_json(report, out, as_json)
    if as_json:
        return
    console.print(_table(report, f"width {width}, {steps} steps"))
    accuracy = report["job"]["task_accuracy"]
    print_line(f"The network itself is right on {accuracy:.1%} of new inputs.")


def _table(report: Mapping[str, Any], title: str) -> Table:
    table = Table(
        "system", "numbers", "interchange accuracy", "median step", "over roadint's", title=title
    )
    ratios = {ratio["over"]: ratio["value"] for ratio in report["ratios"]}
    for case in report["cases"]:
        slower = ratios.get(case["system"])
        table.add_row(
            case["system"],
            f"{case['numbers']:,}",
            f"{case['accuracy']:.1%}",
            f"{1000 * case['median_s']:.1f} ms",
            "" if slower is None else f"{slower:.1f} ×",
        )
    return table
