"""`roadint bench generate`: times of generation."""

from typing import Annotated

import typer

from roadint.cli.bench.options import Layer, Model, Runs, Shape, check_outputs, check_shape
from roadint.cli.bench.output import show_report
from roadint.cli.options import Json, Plot, ReportFile


def generate(
    model: Model = "gemma-3-270m",
    shape: Shape = None,
    layer: Layer = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in the batch.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of every answer.")] = 32,
    compositions: Annotated[
        list[int] | None, typer.Option(min=1, help="Different ones in the batch, repeatable.")
    ] = None,
    runs: Runs = 7,
    out: ReportFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Time `generate`: the bare model, 1 to 64 compositions in one batch, and pyvene."""
    from roadint.bench.generate import bench_generate

    check_outputs(out, plot)
    check_shape(shape)
    report = bench_generate(
        model,
        shape=shape,
        layer=layer,
        batch_size=batch_size,
        new_tokens=new_tokens,
        compositions=tuple(compositions or (1, 8, 64)),
        runs=runs,
        quiet=as_json,
    )
    show_report(report, out, plot, as_json)
