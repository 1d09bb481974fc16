"""`roadint sweep`: the table of runs, for people and machines."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.checks import check_folder, check_picture
from roadint.cli.options import (
    Compositions,
    Json,
    MaxPrompts,
    MaxRows,
    Plot,
    PromptFile,
    Settings,
    named_values,
)
from roadint.cli.output import console, print_json, save_figure, tested
from roadint.errors import RoadError, quoted


def sweep(
    plan: Annotated[
        str,
        typer.Argument(help="A sweep's YAML file (recipe, set, over, compose, …), or a recipe."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the table (runs.jsonl) and the checkpoints.")
    ],
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over", help="NAME=[VALUE, …], repeatable: a setting of the recipe to vary."
        ),
    ] = None,
    settings: Settings = None,
    compose: Compositions = None,
    prompts: PromptFile = None,
    max_prompts: MaxPrompts = None,
    rows: MaxRows = None,
    engine: Annotated[
        str, typer.Option(help="sequential, or ray (pip install 'roadint\\[ray]').")
    ] = "sequential",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at once, with ray; one a GPU by default.")
    ] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Train and measure every combination of settings; resumable, a line a run in a table."""
    from roadint.files.yaml import parse_yaml
    from roadint.sweep.plan import Plan
    from roadint.sweep.run import sweep as run

    check_folder("--out", out)
    check_picture("--plot", plot)
    varied = {
        name: parse_yaml(text, f"--over {name}={quoted(text)}")
        for name, text in named_values(over, "--over").items()
    }
    chosen = Plan.load(
        plan,
        varied,
        set=named_values(settings, "--set") or None,
        compose=compose,
        prompts=str(prompts) if prompts else None,
        max_prompts=max_prompts,
        rows=rows,
    )
    if plot is not None and all(chosen.recipe_of(each).task.name for each in chosen.runs()):
        raise RoadError("--plot draws compositions, and this sweep's runs are a task's")
    entries = run(chosen, out, engine=engine, workers=workers, quiet=as_json)  # type: ignore[arg-type]
    try:
        if plot is not None:
            from roadint.plots import changes_figure

            save_figure(changes_figure(entries), plot)
    finally:
        print_json(entries) if as_json else console.print(_table(entries))
    errors = [entry["error"] for entry in entries if "error" in entry]
    if errors:
        first = " ".join(errors[0].split())
        print(
            f"roadint: {len(errors)} of {len(entries)} runs failed; the first: {first}",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _table(entries: Sequence[Mapping[str, Any]]) -> Table:
    if any("metric" in entry for entry in entries):
        return _table_of_tasks(entries)
    table = Table(
        "run",
        "settings",
        "composition",
        "success",
        "on topic",
        "languages",
        "nats a token",
        "s",
        show_lines=True,
    )
    for entry in entries:
        settings = ", ".join(f"{name}={value}" for name, value in entry["settings"].items())
        table.add_row(entry["run"], settings, *_result(entry))
    return table


def _table_of_tasks(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A line a run, the test sets in one cell; runs of data sets have no metric."""
    table = Table("run", "settings", "task", "best validation", "test", "s")
    for entry in entries:
        settings = ", ".join(f"{name}={value}" for name, value in entry["settings"].items())
        if "metric" not in entry:
            told = f"failed: {entry['error']}" if "error" in entry else "–"
            table.add_row(entry["run"], settings, told)
            continue
        best = f"{100 * max(entry['validation']):.1f}"
        task = f"{entry['task']}, {entry['metric']}"
        table.add_row(entry["run"], settings, task, best, tested(entry), f"{entry['seconds']:.0f}")
    return table


def _result(entry: Mapping[str, Any]) -> list[str]:
    """The cells of a run; every cell has a line for every composition."""
    if "error" in entry:
        return [f"failed: {entry['error']}"]
    lines = [_composition(entry, composition) for composition in entry["nll"]]
    cells = ["\n".join(column) for column in zip(*lines, strict=True)] or [""] * 5
    return [*cells, f"{entry['seconds']:.0f}"]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _composition(entry: Mapping[str, Any], composition: str) -> tuple[str, ...]:
    shares = entry["shares"][composition]
    languages = list(entry["language"][composition].items())[:2]
    nats = entry["nll"][composition].items()
    return (
        composition,
        _percent(shares["success"]),
        _percent(shares["on_topic"]),
        ", ".join(f"{code} {part:.0%}" for code, part in languages),
        ", ".join(f"{name} {value:.2f}" for name, value in nats),
    )
