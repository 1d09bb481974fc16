"""`roadint bench train`, `generate`, `align`, `linear` and `learn`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.terminal import (
    Data,
    Json,
    Rows,
    check_file,
    check_picture,
    console,
    overrides,
    pairs,
    report_json,
)
from roadint.errors import RoadError, check_known, first_line, listing, quoted
from roadint.recipes.settings import Range

app = typer.Typer(
    help="Measure roadint against pyvene and the bare model, on this machine in one run.",
    no_args_is_help=True,
)

Model = Annotated[
    str, typer.Option(help="Hub id, folder or short name (gemma-3-270m, smollm2-135m).")
]
Layer = Annotated[
    int | None, typer.Option(min=0, help="Where the edit is; the middle layer by default.")
]
Out = Annotated[Path | None, typer.Option(help="Also write the report, as JSON, to this file.")]
Plot = Annotated[
    Path | None, typer.Option(help="Write a picture of the report (.png, .svg, .pdf).")
]


@app.command()
def train(
    model: Model = "gemma-3-270m",
    layer: Layer = None,
    data: Data = None,
    rows: Rows = None,
    max_completion: Annotated[
        int, typer.Option(min=1, help="Cut completions at this many tokens.")
    ] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 8,
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
        typer.Option(help="Only these systems, repeatable; roadint is always one."),
    ] = None,
    out: Out = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Time training steps: the same weights, rows, order, optimizer and dtype in every system, each in a process of its own."""
    from roadint.bench.train import bench_train
    from roadint.bench.train_systems import BUNDLED, SYSTEMS
    from roadint.bench.train_systems import TrainingJob as Job
    from roadint.data.sources import check_sources

    for each in system or ():
        check_known("system", each, SYSTEMS)
    _check(out, plot)
    chosen = [name for name in SYSTEMS if system is None or name in system or name == "roadint"]
    given = pairs(data, "--data") or BUNDLED
    if not set(given) <= set(BUNDLED):
        raise RoadError(
            f"--data names {listing(given)}: expected german and english, the two halves that are trained"
        )
    check_sources(given, rows)
    job = Job(model, layer, given, rows, max_completion, batch_size, epochs=epochs)
    report = bench_train(
        job, chosen, steps=None if whole else steps, scaling=scaling, quiet=as_json
    )
    _show(report, out, plot, as_json)


@app.command()
def generate(
    model: Model = "gemma-3-270m",
    layer: Layer = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in the batch.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of every answer.")] = 32,
    compositions: Annotated[
        list[int] | None, typer.Option(min=1, help="Different ones in the batch, repeatable.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Of every system, in turns.")] = 7,
    out: Out = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Time `generate`: the bare model, 1 to 64 different compositions in one batch, and pyvene."""
    from roadint.bench.generate import bench_generate

    _check(out, plot)
    counts = tuple(compositions or (1, 8, 64))
    report = bench_generate(
        model,
        layer=layer,
        batch_size=batch_size,
        new_tokens=new_tokens,
        compositions=counts,
        runs=runs,
        quiet=as_json,
    )
    _show(report, out, plot, as_json)


@app.command()
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
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Interchange accuracy and step times of RoadInterchange and pyvene's DAS classes, on hierarchical equality."""
    from roadint.bench.align import bench_align

    _check(out, None)
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
    table = Table(
        "system",
        "numbers",
        "interchange accuracy",
        "median step",
        "over roadint's",
        title=f"width {width}, {steps} steps",
    )
    ratios = {each["over"]: each["value"] for each in report["ratios"]}
    for each in report["cases"]:
        slower = ratios.get(each["system"])
        table.add_row(
            each["system"],
            f"{each['numbers']:,}",
            f"{each['accuracy']:.1%}",
            f"{1000 * each['median_s']:.1f} ms",
            "" if slower is None else f"{slower:.1f} ×",
        )
    console.print(table)
    console.print(
        f"The network itself is right on {report['job']['task_accuracy']:.1%} of new inputs.",
        highlight=False,
    )


@app.command()
def linear(
    model: Annotated[
        str, typer.Option(help="For the decode; hub id, folder or short name.")
    ] = "smollm2-135m",
    part: Annotated[
        list[str] | None,
        typer.Option(help="layer, decode, merge or memory, repeatable; all by default."),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Of a layer, repeatable; 576 to 4,096 by default."),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32 or bfloat16, repeatable; both by default.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Of every system, in turns.")] = 15,
    out: Out = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Adapters on linear layers: mixed batches, merging and training memory, beside PEFT and a LoRA of batched products."""
    from roadint.bench.linear import PARTS, WIDTHS, bench_linear

    _check(out, plot)
    for each in part or ():
        check_known("part", each, PARTS)
    for each in dtype or ():
        check_known("dtype", each, ("float32", "bfloat16"))
    report = bench_linear(
        model,
        parts=part or PARTS,
        widths=width or WIDTHS,
        dtypes=dtype or ("float32", "bfloat16"),
        runs=runs,
        quiet=as_json,
    )
    report_json(report, out, as_json)
    if plot is not None:
        from roadint.plots import linear_figure

        linear_figure(report).savefig(plot, dpi=150)
    if as_json:
        return
    table = Table(
        "case",
        "dtype",
        "rows × tokens, or layers",
        "width",
        "adapters",
        "system",
        "median",
        "over the base",
    )
    for each in report["cases"]:
        shape = (
            f"{each['rows']} × {each['tokens']}"
            if "rows" in each
            else str(each["layers"])
            if "layers" in each
            else ""
        )
        time = (
            f"{1000 * each['median_s']:.2f} ms"
            if "median_s" in each
            else each.get("error") or f"{each['copies_kept']} copies kept"
        )
        over = f"{each['over_base']:.2f}" if "over_base" in each else ""
        table.add_row(
            each["name"],
            each["dtype"],
            shape,
            str(each.get("width", "")),
            str(each.get("adapters", "")),
            each["system"],
            time,
            over,
        )
    console.print(table)


@app.command()
def learn(
    recipe: Annotated[
        str, typer.Argument(help="A recipe of a task (glue, commonsense, …) or a YAML file.")
    ] = "glue",
    data: Data = None,
    rows: Rows = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, repeatable: a setting of the recipe."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model instead of the recipe's.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="road_1, road_2, road_4, lora, ia3 or head, repeatable."),
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="METHOD=RATE, repeatable: another learning rate.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=2**32 - 1, help="Repeatable; 1, 2 and 3 by default."),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What RoAd1, RoAd2 and RoAd4 learn beside PEFT's LoRA and (IA)³: one task, the same budget, several seeds."""
    from roadint.bench.learn import bench_learn
    from roadint.recipes.recipe import Recipe

    _check(out, None)
    chosen = Recipe.load(recipe, overrides(settings, rows=rows, model=model))
    given_rates = pairs(rate, "--rate")
    try:
        rates = {name: float(value) for name, value in given_rates.items()}
    except ValueError as error:
        raise RoadError(
            f"--rate {quoted(rate)}: expected METHOD=NUMBER ({first_line(error)})"
        ) from None
    Range(0, above=True).check("--rate", rates)
    report = bench_learn(
        chosen,
        pairs(data, "--data"),
        methods=method or (),
        seeds=seed or (1, 2, 3),
        rates=rates,
        quiet=as_json,
    )
    report_json(report, out, as_json)
    if as_json:
        return
    job = report["job"]
    table = Table(
        "method",
        "numbers",
        "head",
        "rate",
        f"test {job['metric']}",
        "validation",
        "seconds",
        title=f"{job['task']}, {job['rows']}",
    )
    for each in report["cases"]:
        if each["method"] == "base":
            table.add_row("base", "0", "", "", f"{100 * each['test']:.1f}", "", "")
            continue
        spread = "" if each["sd"] is None else f" ± {100 * each['sd']:.1f}"
        table.add_row(
            each["method"],
            f"{each['numbers']:,}",
            f"{each['head']:,}",
            f"{each['lr']:g}",
            f"{100 * each['test']:.1f}{spread}",
            f"{100 * each['validation']:.1f}",
            f"{each['seconds']:.0f}",
        )
    console.print(table)


def _check(out: Path | None, plot: Path | None) -> None:
    """Before hours of measuring."""
    check_file("--out", out)
    check_picture("--plot", plot)


def _show(report: dict[str, Any], out: Path | None, plot: Path | None, as_json: bool) -> None:
    report_json(report, out, as_json)
    if plot is not None:
        from roadint.plots import bench_figure

        bench_figure(report).savefig(plot, dpi=150)
    if as_json:
        return
    about = report["machine"]
    console.print(
        f"{about['processor']}, {about['threads']} threads, {about['dtype']}, "
        f"matrix products {about['matmul_gflops']:.0f} GFLOP/s, torch {about['torch']}, transformers {about['transformers']}",
        highlight=False,
    )
    ratios = {(each["name"], each["over"]): each["value"] for each in report["ratios"]}
    table = Table(
        "case",
        "system",
        "median",
        "min to max",
        "runs",
        "peak memory",
        "of the matrix-multiply rate",
        "roadint is",
    )
    for each in report["cases"]:
        axis = next(
            (
                f"{each[key]} "
                for key in ("prompt", "completion", "rows", "compositions")
                if key in each
            ),
            "",
        )
        faster = ratios.get((each["name"], each["system"]))
        table.add_row(
            each["name"] + (f" = {axis}" if axis else ""),
            each["system"],
            f"{each['median_s']:.2f} s",
            f"{each['min_s']:.2f} to {each['max_s']:.2f}",
            str(each["runs"]),
            "" if each["peak_mb"] is None else f"{each['peak_mb']:,.0f} MB",
            f"{each['matmul_fraction']:.0%}" if "matmul_fraction" in each else "",
            "" if faster is None else f"{faster:.2f} × as fast",
        )
    console.print(table)
