"""`roadint bench learn`: what methods learn of one task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.bench.options import check_outputs, kept_report, rates_of, read_report
from roadint.cli.bench.output import keep_report
from roadint.cli.options import (
    Data,
    Json,
    MaxRows,
    Plot,
    ReportFile,
    Settings,
    named_values,
    overrides,
    refuse_settings,
)
from roadint.cli.output import console, report_json
from roadint.errors import RoadError, quoted


def learn(
    recipe: Annotated[
        str, typer.Argument(help="A recipe of a task (glue, commonsense, …) or a YAML file.")
    ] = "glue",
    data: Data = None,
    rows: MaxRows = None,
    settings: Settings = None,
    model: Annotated[str | None, typer.Option(help="Base model instead of the recipe's.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: road_1, road_2, road_4, road_1+lora_RANK, lora_RANK, dora_RANK, ia3, "
            "oft, boft, bitfit, loreft_RANK, full or head; all but boft, bitfit and head by "
            "default, with one rank each."
        ),
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="METHOD=RATE, repeatable: another learning rate.")
    ] = None,
    tries: Annotated[
        int,
        typer.Option(
            min=1,
            max=9,
            help="Learning rates of each method, by factors of 3 around its own: all with the "
            "first seed, the others take the best by validation.",
        ),
    ] = 1,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=2**32 - 1, help="Repeatable; 1, 2 and 3 by default."),
    ] = None,
    out: ReportFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the runs that --out lacks.")
    ] = False,
    plot: Plot = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Repeatable: a report of another task, drawn beside this one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What RoAd learns beside LoRA, DoRA, (IA)³, OFT, LoReFT, full finetuning and others.

    One task, the same budget, several seeds; every run is in --out once it is done.
    """
    from roadint.bench.learn import bench_learn
    from roadint.recipes.edit import LINEAR
    from roadint.recipes.recipe import Recipe

    check_outputs(out, plot)
    kept = kept_report(out, resume)
    if beside and plot is None:
        raise RoadError("--beside is for the picture: expected --plot FILE")
    others = [_read_beside(path) for path in beside or ()]
    refuse_settings(settings, lr="--rate METHOD=RATE", seed="--seed", variant="--method")
    chosen = Recipe.load(recipe, overrides(settings, rows=rows, model=model))
    if chosen.edit.kind != LINEAR:
        raise RoadError(
            f"recipe kind {chosen.edit.kind!r}: expected kind 'linear' to compare methods"
        )
    report = bench_learn(
        chosen,
        named_values(data, "--data"),
        methods=method or (),
        seeds=seed or (1, 2, 3),
        rates=rates_of(rate),
        tries=tries,
        kept=kept,
        done=lambda report: report_json(report, out, printed=False),
        quiet=as_json,
    )
    keep_report(report, out, plot, as_json, "learn_figure", *others, show=_show)


def _show(report: Mapping[str, Any]) -> None:
    console.print(_table(report))


def _read_beside(path: Path) -> Mapping[str, Any]:
    report: Mapping[str, Any] = read_report(path, "--beside")
    if not all("numbers" in case and "test" in case for case in report["cases"]):
        raise RoadError(
            f"--beside {quoted(str(path))}: expected what roadint bench learn --out wrote"
        )
    return report


def _table(report: Mapping[str, Any]) -> Table:
    job = report["job"]
    tried = any("tries" in case for case in report["cases"])
    table = Table(
        "method",
        "numbers",
        "head",
        "rate",
        f"test {job['metric']}",
        "validation",
        "seconds",
        *(["tried: rate and validation"] if tried else []),
        title=f"{job['task']}, {job['rows']}",
    )
    for case in report["cases"]:
        if case["method"] == "base":
            table.add_row("base", "0", "", "", f"{100 * case['test']:.1f}", "", "")
            continue
        spread = "" if case["sd"] is None else f" ± {100 * case['sd']:.1f}"
        table.add_row(
            case["method"],
            f"{case['numbers']:,}",
            f"{case['head']:,}",
            f"{case['lr']:g}",
            f"{100 * case['test']:.1f}{spread}",
            f"{100 * case['validation']:.1f}",
            f"{case['seconds']:.0f}",
            *([_tries(case)] if "tries" in case else []),
        )
    return table


def _tries(case: Mapping[str, Any]) -> str:
    told = ", ".join(
        f"{each['lr']:g} " + (f"{100 * each['validation']:.1f}" if "error" not in each else "fails")
        for each in case["tries"]
    )
    return f"{told}; best at the edge" if case["edge"] else told
