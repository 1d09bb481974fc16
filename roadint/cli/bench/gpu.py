"""`roadint bench gpu`: the promises of speed on a GPU, in one run."""

from pathlib import Path
from typing import Annotated

import typer

from roadint.cli.bench.options import check_shape
from roadint.cli.bench.output import bars_table, machine_line
from roadint.cli.options import Json
from roadint.cli.output import console, print_json, print_line
from roadint.errors import RoadError, check_known


def gpu(
    out: Annotated[Path, typer.Option(help="A folder, for the reports and the table.")] = Path(
        "build/gpu"
    ),
    shape: Annotated[
        str, typer.Option(help="Of the model, whose weights are random: llama-7b, …")
    ] = "llama-7b",
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="decode, train, adapters, generate, align-2048, align-4096, merge, compiled-8 or "
            "compiled-64, repeatable; all by default."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.0, help="No stage begins after so many.")] = 9.5,
    as_json: Json = False,
) -> None:
    """What roadint promises of speed on a GPU, beside what is measured, in about ten minutes.

    Every report is written as soon as it is there: an end before the last one loses nothing.
    """
    from roadint.bench.gpu import Sizes, bench_gpu, stages_of
    from roadint.bench.machine import default_device
    from roadint.bench.shapes import SHAPES

    check_shape(shape)
    if default_device().type == "cpu" and shape == "llama-7b":
        raise RoadError(
            "--shape llama-7b without a GPU would take days: expected a GPU, or --shape "
            "smollm2-135m or tiny"
        )
    sizes = Sizes(shape, layer=min(15, SHAPES[shape]["num_hidden_layers"] - 1))
    for name in stage or ():
        check_known("stage", name, stages_of(sizes))
    result = bench_gpu(out, sizes, stages=stage or (), seconds=60 * minutes, quiet=as_json)
    if as_json:
        print_json(result)
        return
    print_line(machine_line(result["machine"]))
    console.print(bars_table(result["bars"]))
    for name, took in result["stages"].items():
        print_line(f"{name}: {f'{took:.0f} s' if isinstance(took, float) else took}")
    for error in result["errors"]:
        print_line(f"failed: {error}")
