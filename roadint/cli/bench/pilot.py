"""`roadint bench pilot`: the paper's pilot studies."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.bench.options import check_outputs, rates_of
from roadint.cli.bench.output import keep_report, machine_line
from roadint.cli.options import (
    Json,
    Plot,
    ReportFile,
    Settings,
    named_values,
    overrides,
    refuse_settings,
)
from roadint.cli.output import console, print_line

_HOLDS = {True: "yes", False: "no, the opposite", None: "open"}


def pilot(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help=(
                "TASK.SPLIT=FILE, repeatable: sst2.train, sst2.dev (study 1), rte.train, rte.dev, "
                "mrpc.…, stsb.…, cola.… (study 2); the hub's by default."
            ),
        ),
    ] = None,
    study: Annotated[
        str, typer.Option(help="1: states before and after finetuning. 2: classifiers. Or both.")
    ] = "both",
    model: Annotated[
        str, typer.Option(help="Encoder: hub id or folder.")
    ] = "FacebookAI/roberta-base",
    method: Annotated[
        list[str] | None,
        typer.Option(help="Of study 1: full, lora or road_1, repeatable; all by default."),
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="METHOD=RATE, repeatable: another learning rate.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Only the first training rows of study 1.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of finetuning in study 1.")] = 3,
    classifier_rows: Annotated[
        int | None, typer.Option(min=1, help="Only the first training rows of study 2's tasks.")
    ] = None,
    classifier_epochs: Annotated[
        int, typer.Option(min=1, help="Of the classifiers in study 2.")
    ] = 10,
    settings: Settings = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=2**32 - 1, help="Repeatable; 1, 2 and 3 by default."),
    ] = None,
    out: ReportFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """What finetuning changes of hidden states, and what classifiers need: size or direction?

    The paper's pilot studies (section 3.1, figure 2) on an encoder and GLUE.
    """
    from roadint.bench.pilot import bench_pilot
    from roadint.recipes.recipe import Recipe

    check_outputs(out, plot)
    refuse_settings(settings, lr="--rate METHOD=RATE", seed="--seed")
    chosen = Recipe.load("glue", overrides(settings, model=model, epochs=epochs))
    report = bench_pilot(
        chosen,
        named_values(data, "--data"),
        study=study,
        methods=method or (),
        seeds=seed or (1, 2, 3),
        rows=rows,
        rates=rates_of(rate),
        classifier_rows=classifier_rows,
        classifier_epochs=classifier_epochs,
        quiet=as_json,
    )
    keep_report(report, out, plot, as_json, "pilot_figure", show=_show)


def _show(report: Mapping[str, Any]) -> None:
    print_line(machine_line(report["machine"]))
    for show in (_show_changes, _show_classifiers):
        show(report)


def _show_changes(report: Mapping[str, Any]) -> None:
    cases = _of_study(report["cases"], 1)
    if not cases:
        return
    table = Table(
        "method",
        "layer",
        "ΔM",
        "ΔD",
        "1 − ΔD",
        "moved by the turn",
        "ΔM by chance",
        "rows with 1 − ΔD > ΔM",
        "correlation",
        title=f"Study 1: {cases[0]['rows']:,} states before and after finetuning on SST-2",
    )
    for case in cases:
        related = case["correlation"]
        table.add_row(
            case["method"],
            str(case["layer"]),
            f"{case['magnitude']:.4f} ± {case['magnitude_sd']:.4f}",
            f"{case['direction']:.4f} ± {case['direction_sd']:.4f}",
            f"{1 - case['direction']:.4f}",
            f"{case['turn']:.4f}",
            f"{case['magnitude_by_chance']:.4f}",
            f"{case['rows_direction_larger']:.0%}",
            "" if related is None else f"{related:.2f}",
        )
    console.print(table)
    runs = Table("method", "seed", "rate", "validation", "test", "numbers", "seconds")
    for run in report["runs"]:
        runs.add_row(
            run["method"],
            str(run["seed"]),
            f"{run['lr']:g}",
            f"{100 * max(run['validation']):.1f}",
            f"{100 * run['test']:.1f}",
            f"{run['trainable']:,}",
            f"{run['seconds']:.0f}",
        )
    console.print(runs)
    verdicts = Table("claim", "holds in layers", "of")
    for claim in _of_study(report["claims"], 1):
        held = ", ".join(map(str, claim["layers"])) or "none"
        verdicts.add_row(claim["claim"], held, str(len(claim["of"])))
    console.print(verdicts)


def _show_classifiers(report: Mapping[str, Any]) -> None:
    cases = _of_study(report["cases"], 2)
    if not cases:
        return
    table = Table(
        "task",
        "reads",
        "test",
        "validation",
        "rate",
        "size of x0",
        title="Study 2: classifiers of a frozen encoder's states",
    )
    for case in cases:
        spread = "" if case["sd"] is None else f" ± {100 * case['sd']:.1f}"
        table.add_row(
            f"{case['task']}, {case['metric']}, {case['rows']['test']} rows",
            case["reads"],
            f"{100 * case['test']:.1f}{spread}",
            f"{100 * case['validation']:.1f}",
            f"{case['lr']:g}",
            f"{case['size']:.2f} ± {case['size_sd']:.2g}",
        )
    console.print(table)
    verdicts = Table("task", "claim", "difference", "95 % interval", "holds")
    for claim in _of_study(report["claims"], 2):
        verdicts.add_row(
            claim["task"],
            f"{claim['better']} above {claim['worse']}",
            f"{100 * claim['difference']:+.1f}",
            f"{100 * claim['low']:+.1f} to {100 * claim['high']:+.1f}",
            _HOLDS[claim["holds"]],
        )
    console.print(verdicts)


def _of_study(entries: Sequence[Mapping[str, Any]], study: int) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if entry["study"] == study]
