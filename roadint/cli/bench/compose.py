"""`roadint bench compose`: compositions of subspaces, beside the same by other means."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.bench.options import check_outputs, kept_report, rates_of
from roadint.cli.bench.output import keep_report
from roadint.cli.options import (
    Compositions,
    Data,
    Expected,
    Json,
    MaxPrompts,
    MaxRows,
    NewTokens,
    Plot,
    PromptFile,
    ReportFile,
    Settings,
    named_values,
    overrides,
    refuse_settings,
)
from roadint.cli.output import console, report_json


def compose(
    recipe: Annotated[
        str, typer.Argument(help="A recipe of subspaces, each with a data set.")
    ] = "composition-many",
    data: Data = None,
    rows: MaxRows = None,
    settings: Settings = None,
    model: Annotated[str | None, typer.Option(help="Base model instead of the recipe's.")] = None,
    composition: Compositions = None,
    expect: Expected = None,
    prompts: PromptFile = None,
    max_prompts: MaxPrompts = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable: road, loreft, lora, means, prompt; all by default."),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="Repeatable: a factor of whole compositions; 0.6, 0.8, 1 and 1.25."),
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="METHOD=RATE, repeatable: another learning rate.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=2**32 - 1, help="Repeatable; 1, 2 and 3 by default."),
    ] = None,
    max_new_tokens: NewTokens = 48,
    out: ReportFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the runs that --out lacks.")
    ] = False,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """What subspaces learned apart do together, beside LoReFT, LoRA, means and a prompt.

    The success of every method at RoAd's divergence from the base model; every run is in --out once
    it is done.
    """
    from roadint.bench.compose import STRENGTHS, bench_compose
    from roadint.bench.compose_systems import METHODS
    from roadint.data.prompt_files import read_prompts
    from roadint.recipes.recipe import Recipe

    check_outputs(out, plot)
    kept = kept_report(out, resume)
    sources = named_values(data, "--data")
    refuse_settings(settings, seed="--seed")
    changes = overrides(settings, rows=rows, model=model, data=sources or None)
    report = bench_compose(
        Recipe.load(recipe, changes),
        read_prompts(prompts or "bundled:prompts_dev", max_prompts),
        composition or (),
        methods=method or METHODS,
        strengths=strength or STRENGTHS,
        seeds=seed or (1, 2, 3),
        rates=rates_of(rate),
        expect=named_values(expect, "--expect"),
        max_new_tokens=max_new_tokens,
        kept=kept,
        done=lambda report: report_json(report, out, printed=False),
        quiet=as_json,
    )
    keep_report(report, out, plot, as_json, "compose_figure", show=_show)


def _show(report: Mapping[str, Any]) -> None:
    console.print(_table(report))


def _table(report: Mapping[str, Any]) -> Table:
    table = Table(
        "composition",
        "method",
        "numbers",
        "strength 1: success",
        "has",
        "on topic",
        "KL",
        "success at RoAd's KL",
    )
    equal = {(each["composition"], each["method"]): each for each in report["equal"]}
    for name in report["job"]["asks"]:
        for case in report["cases"]:
            if case["composition"] != name or case["strength"] not in (0.0, 1.0):
                continue
            spread = "" if case["sd"] is None else f" ± {case['sd']:.0%}"
            table.add_row(
                name,
                case["method"],
                f"{case['numbers']:,}",
                f"{case['success']:.0%}{spread}",
                f"{case['has']:.0%}",
                f"{case['on_topic']:.0%}",
                "" if case["kl"] is None else f"{case['kl']:.2f}",
                _at_equal(equal.get((name, case["method"]))),
            )
    return table


def _at_equal(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['success']:.0%}" + ("" if found["reached"] in (True, None) else ", not as far")
