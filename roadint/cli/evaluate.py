"""`roadint eval`: the report as tables, JSON and a picture."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.checks import check_file, check_picture
from roadint.cli.options import (
    Added,
    Base,
    Compositions,
    Data,
    Expected,
    Json,
    MaxPrompts,
    MaxRows,
    Plot,
    PromptFile,
    ReportFile,
    named_values,
)
from roadint.cli.output import console, print_json, print_line, report_json, save_figure
from roadint.errors import RoadError, listing


def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(help="Folder or hub id of a checkpoint; several seeds of one recipe."),
    ],
    data: Data = None,
    prompts: PromptFile = None,
    compose: Compositions = None,
    add: Added = None,
    rows: MaxRows = None,
    max_completion: Annotated[
        int | None, typer.Option(min=1, help="Cut references at this many tokens; 64 by default.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of an answer, in tokens; 48 by default.")
    ] = None,
    max_prompts: MaxPrompts = None,
    expect: Expected = None,
    out: ReportFile = None,
    plot: Plot = None,
    model: Base = None,
    as_json: Json = False,
) -> None:
    """Measure compositions: likelihood of references; language, topic and form of answers.

    Bundled development data by default. A checkpoint that a task trained is measured by the task,
    on the test rows of its training, or on those of --data.
    """
    from roadint.cli.evaluate_task import evaluate_tasks, refuse_options, task_recipes
    from roadint.data.prompt_files import read_prompts
    from roadint.data.sources import check_sources
    from roadint.evaluation.evaluate import evaluate as measure
    from roadint.evaluation.forms import asked_by
    from roadint.evaluation.report import Report, over_seeds
    from roadint.model.opening import base_of, names_of, open_checkpoint

    check_file("--out", out)
    check_picture("--plot", plot)
    added, sources = named_values(add, "--add"), named_values(data, "--data") or None
    if len(set(checkpoints)) < len(checkpoints):
        raise RoadError(f"a checkpoint is given twice: {', '.join(checkpoints)}")
    if recipes := task_recipes(checkpoints):
        refuse_options(
            prompts=prompts,
            compose=compose,
            add=add,
            max_completion=max_completion,
            max_new_tokens=max_new_tokens,
            max_prompts=max_prompts,
            expect=expect,
            plot=plot,
        )
        evaluate_tasks(recipes, sources, rows, model, out, as_json)
        return
    expected = named_values(expect, "--expect")
    for checkpoint in checkpoints:
        asked_by(names_of(checkpoint, added), expected)
    bases = {checkpoint: base_of(checkpoint) for checkpoint in checkpoints}
    if model is None and len(of := {base for base, _ in bases.values()}) > 1:
        raise RoadError(
            f"checkpoints of different base models, {listing(sorted(of))}: expected seeds of one "
            "recipe, or --model"
        )
    check_sources(sources or {}, rows)
    asked = read_prompts(prompts or "bundled:prompts_paper", max_prompts)
    reports = {}
    loaded: dict[str, tuple[Any, Any]] = {}  # by dtype, the last one
    for checkpoint, (_, dtype) in bases.items():
        if dtype not in loaded:
            loaded.clear()
        road, tokenizer = open_checkpoint(checkpoint, model, compose, added, loaded.get(dtype))
        loaded[dtype] = (road.model, tokenizer)
        reports[checkpoint] = measure(
            road,
            tokenizer,
            sources,
            asked,
            compose=compose,
            rows=rows,
            expect=expected,
            max_completion=max_completion or 64,
            max_new_tokens=max_new_tokens or 48,
            quiet=as_json,
        )
        del road, tokenizer  # before another base model is loaded
    report: Report = reports[checkpoints[0]] if len(reports) == 1 else over_seeds(reports)
    shown = asdict(report)
    report_json(shown, out, printed=False)
    try:
        if plot is not None:
            _draw(report, plot)
    finally:
        print_json(shown) if as_json else _print_tables(shown)


def _draw(report: Any, plot: Path) -> None:
    from roadint.plots import composition_figure

    save_figure(composition_figure(report), plot)


def _print_tables(report: Mapping[str, Any]) -> None:
    console.print(_references(report))
    console.print(_answers(report))
    if report["gain"]:
        console.print(_gain(report))
    if report["interference"]:
        console.print(_interference(report))
    for line in conclusions(report):
        print_line(line)


def conclusions(report: Mapping[str, Any]) -> list[str]:
    """What the answers say of compositions of several subspaces, a line each.

    Each beside its best part that asks for the same: German alone, for "german + english".
    """
    lines = []
    success = {name: shares["success"] for name, shares in report["shares"].items()}
    asks = report["asks"]
    for name, share in success.items():
        parts = [part.strip() for part in name.replace(" - ", " + ").split(" + ")]
        rivals = [part for part in parts if part in success and asks[part] == asks[name]]
        rivals = [part for part in rivals if success[part] is not None]
        if len(parts) < 2 or not asks[name] or not rivals or share is None:
            continue
        best = max(rivals, key=lambda part: float(success[part]))
        points = round(100 * (share - success[best]))
        than = (
            f"{abs(points)} points {'above' if points > 0 else 'below'}" if points else "as many as"
        )
        asked = " and ".join(asks[name]).replace("_", " ")
        lines.append(
            f"{name}: {share:.0%} of the answers are {asked} and on topic, {than} {best} alone "
            f"({success[best]:.0%})"
        )
    return lines


def _references(report: Mapping[str, Any]) -> Table:
    sets = list(next(iter(report["nll"].values())))
    table = Table(
        "composition",
        *sets,
        "KL from none",
        title="references, nats a token",
        caption="lower is better: how surprising the answers of the data are",
    )
    for composition in report["nll"]:
        nats = (_figure(report, "nll", composition, name) for name in sets)
        table.add_row(composition, *nats, _figure(report, "kl", composition))
    return table


def _answers(report: Mapping[str, Any]) -> Table:
    names = [name.replace("_", " ") for name in next(iter(report["shares"].values()))]
    table = Table(
        "composition",
        "asks for",
        "languages",
        *names,
        title="answers",
        caption="success: on topic (of the prompts, at most 32, its own is the nearest), and what "
        "subspaces ask for",
    )
    for composition, shares in report["shares"].items():
        languages = report["language"][composition].items()
        table.add_row(
            composition,
            ", ".join(report["asks"][composition]).replace("_", " ") or "–",
            ", ".join(f"{code} {part:.0%}" for code, part in languages if part >= 0.005),
            *(_figure(report, "shares", composition, name, form=".0%") for name in shares),
        )
    return table


def _gain(report: Mapping[str, Any]) -> Table:
    sets = list(next(iter(report["nll"].values())))
    title = "gain: the best of none and the parts alone, minus the composition, nats a token"
    table = Table("composition", *sets, title=title, caption="above 0: more than its parts")
    for composition in report["gain"]:
        table.add_row(composition, *(_figure(report, "gain", composition, name) for name in sets))
    return table


def _interference(report: Mapping[str, Any]) -> Table:
    title = "interference: the composition minus the subspace alone, on its own data"
    caption = "0: it takes nothing from it; above 0, this much is lost"
    table = Table("data", "composition", "nats a token", title=title, caption=caption)
    for name, compositions in report["interference"].items():
        for composition in compositions:
            nats = _figure(report, "interference", name, composition)
            table.add_row(name, composition, nats)
    return table


def _figure(report: Mapping[str, Any], *path: str, form: str = ".2f") -> str:
    """A number of the report, with ± its spread over seeds."""
    value, spread = _at(report, path), _at(report.get("spread"), path)
    if value is None:
        return "–"
    return f"{value:{form}}" if spread is None else f"{value:{form}} ± {spread:{form}}"


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        values = values.get(name) if values else None
    return values
