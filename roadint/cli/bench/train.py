"""`roadint bench train`: times of training steps."""

from typing import Annotated

import typer

from roadint.cli.bench.options import Layer, Model, Shape, check_outputs, check_shape
from roadint.cli.bench.output import show_report
from roadint.cli.options import Data, Json, MaxRows, Plot, ReportFile, named_values
from roadint.errors import RoadError, check_known, listing


def train(
    model: Model = "gemma-3-270m",
    shape: Shape = None,
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a shape's random prompts; 256.")
    ] = None,
    layer: Layer = None,
    data: Data = None,
    rows: MaxRows = None,
    max_completion: Annotated[
        int, typer.Option(min=1, help="Cut completions at this many tokens.")
    ] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 8,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Rows that roadint computes at once: 4, all of them on a GPU."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of the whole job.")] = 5,
    steps: Annotated[
        int, typer.Option(min=1, help="Measure this many steps, evenly over an epoch.")
    ] = 20,
    whole: Annotated[
        bool, typer.Option("--whole", help="Measure every step of the whole job instead.")
    ] = False,
    scaling: Annotated[
        bool,
        typer.Option(
            "--scaling", help="Also step times by prompt, completion, rows and compositions."
        ),
    ] = False,
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these systems, repeatable; roadint is always one, 'roadint, compiled' only "
            "where it is named."
        ),
    ] = None,
    out: ReportFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Time training steps: the same weights, rows, order, optimizer and dtype in every system.

    Each system runs in a process of its own.
    """
    from roadint.bench.train import bench_train
    from roadint.bench.train_systems import BUNDLED, DEFAULT_SYSTEMS, SYSTEMS, TrainingJob
    from roadint.data.sources import check_sources

    for name in system or ():
        check_known("system", name, SYSTEMS)
    check_outputs(out, plot)
    check_shape(shape)
    wanted = {"roadint", *(system or DEFAULT_SYSTEMS)}
    chosen = [name for name in SYSTEMS if name in wanted]
    if shape is not None and (data or rows is not None):
        raise RoadError("--shape has rows of its own: expected no --data and no --rows")
    if shape is None and prompt is not None:
        raise RoadError("--prompt is the length of a shape's prompts: expected --shape")
    sources = named_values(data, "--data") or BUNDLED
    if not set(sources) <= set(BUNDLED):
        raise RoadError(
            f"--data names {listing(sources)}: expected german and english, the two halves that "
            "are trained"
        )
    check_sources(sources, rows)
    job = TrainingJob(
        model,
        layer,
        sources,
        rows,
        max_completion,
        batch_size,
        micro_batch,
        epochs,
        shape=shape,
        prompt=prompt or 256,
    )
    report = bench_train(
        job, chosen, steps=None if whole else steps, scaling=scaling, quiet=as_json
    )
    show_report(report, out, plot, as_json)
