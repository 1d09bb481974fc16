"""`roadint bench learn`: what methods learn of one task."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.bench.options import check_outputs
from roadint.cli.options import Data, Json, MaxRows, ReportFile, Settings, named_values, overrides
from roadint.cli.output import console, report_json
from roadint.errors import RoadError, first_line, quoted


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
        typer.Option(help="road_1, road_2, road_4, lora, ia3 or head, repeatable."),
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="METHOD=RATE, repeatable: another learning rate.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=2**32 - 1, help="Repeatable; 1, 2 and 3 by default."),
    ] = None,
    out: ReportFile = None,
    as_json: Json = False,
) -> None:
    """What RoAd1, RoAd2 and RoAd4 learn beside PEFT's LoRA and (IA)³.

    One task, the same budget, several seeds.
    """
    from roadint.bench.learn import bench_learn
    from roadint.recipes.edit import LINEAR
    from roadint.recipes.recipe import Recipe

    check_outputs(out)
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
        rates=_rates(rate),
        quiet=as_json,
    )
    report_json(report, out, as_json)
    if not as_json:
        console.print(_table(report))


def _rates(texts: list[str] | None) -> dict[str, float]:
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


def _table(report: Mapping[str, Any]) -> Table:
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
        )
    return table
