"""`roadint sweep`: the table of runs, for people and machines."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.terminal import (
    Composed,
    Json,
    Prompts,
    Rows,
    check_folder,
    console,
    pairs,
    print_json,
)
from roadint.errors import quoted
from roadint.recipes.settings import parse_yaml


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
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, repeatable: a setting of all runs."),
    ] = None,
    compose: Composed = None,
    prompts: Prompts = None,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    rows: Rows = None,
    engine: Annotated[
        str, typer.Option(help="sequential, or ray (pip install 'roadint[ray]').")
    ] = "sequential",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at once, with ray; one a GPU by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train and measure every combination of settings; resumable, one row a run in a table on disk."""
    from roadint.sweep.plan import Plan
    from roadint.sweep.run import sweep as run

    check_folder("--out", out)
    varied = {
        name: parse_yaml(text, f"--over {name}={quoted(text)}")
        for name, text in pairs(over, "--over").items()
    }
    chosen = Plan.load(
        plan,
        varied,
        set=dict(pairs(settings, "--set")) or None,
        compose=compose,
        prompts=str(prompts) if prompts else None,
        max_prompts=max_prompts,
        rows=rows,
    )
    found = run(chosen, out, engine=engine, workers=workers, quiet=as_json)  # type: ignore[arg-type]
    if as_json:
        print_json(found)
    else:
        _show(found)
    errors = [row["error"] for row in found if "error" in row]
    if errors:
        print(
            f"roadint: {len(errors)} of {len(found)} runs failed; the first: {' '.join(errors[0].split())}",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _show(found: Sequence[Mapping[str, Any]]) -> None:
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
    for row in found:
        said = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
        if "error" in row:
            table.add_row(row["run"], said, f"failed: {row['error']}")
            continue
        names = list(row["nll"])
        table.add_row(
            row["run"],
            said,
            "\n".join(names),
            *(
                "\n".join(_share(row["shares"][name][what]) for name in names)
                for what in ("success", "on_topic")
            ),
            "\n".join(
                ", ".join(
                    f"{code} {share:.0%}" for code, share in [*row["language"][name].items()][:2]
                )
                for name in names
            ),
            "\n".join(
                ", ".join(f"{each} {value:.2f}" for each, value in row["nll"][name].items())
                for name in names
            ),
            f"{row['seconds']:.0f}",
        )
    console.print(table)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
