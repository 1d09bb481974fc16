"""`roadint eval` of checkpoints that a task trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from roadint.cli.output import console, report_json
from roadint.errors import RoadError, listing, quoted


def task_recipes(checkpoints: Sequence[str]) -> dict[str, Any]:
    """Checkpoint → the recipe of the task that trained it; empty where data sets trained all.

    Raises:
        RoadError: where tasks trained some of them, or different tasks.
    """
    from roadint.checkpoint.reading import folder_of, read
    from roadint.tasks.evaluate import recipe_of

    recipes = {name: recipe_of(read(folder_of(name))) for name in checkpoints}
    tasks = {name: None if recipe is None else recipe.task.name for name, recipe in recipes.items()}
    if len(set(tasks.values())) > 1:
        told = listing(f"{name}: {task or 'none'}" for name, task in tasks.items())
        raise RoadError(f"checkpoints of different tasks ({told}): expected one task")
    return {} if None in tasks.values() else recipes


def evaluate_tasks(
    recipes: Mapping[str, Any],
    sources: Mapping[str, str] | None,
    rows: int | None,
    model: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure checkpoints of a task, and print the report.

    Args:
        recipes: Checkpoint → its recipe.
        sources: The task's files, in place of the recorded ones.
        rows: How many test rows to take, from the first.
        model: A base model in place of the checkpoints' own.
        out: Where the report goes, too.
        as_json: Whether it is printed as JSON.
    """
    from roadint.model.opening import open_checkpoint
    from roadint.tasks.evaluate import evaluate_task, over_checkpoints
    from roadint.tasks.registry import task_of

    changes = {} if rows is None else {"scored_rows": rows}
    tasks = {
        name: task_of(recipe.override(changes), sources, trains=False)
        for name, recipe in recipes.items()
    }
    reports: dict[str, Any] = {}
    for name, task in tasks.items():
        # Each on a base model of its own, whose head the checkpoint replaces.
        road, tokenizer = open_checkpoint(name, model)
        reports[name] = evaluate_task(road, tokenizer, task)
        del road, tokenizer  # before the next one is loaded
    report: dict[str, Any] = {"task": next(iter(recipes.values())).task.name}
    if len(reports) == 1:
        report |= next(iter(reports.values()))
    else:
        report |= {"checkpoints": reports, **over_checkpoints(list(reports.values()))}
    report_json(report, out, as_json)
    if not as_json:
        console.print(_table(report["task"], reports, report))


def refuse_options(**options: Any) -> None:
    """Refuse options that have no meaning for a task.

    Raises:
        RoadError: where one was given.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise RoadError(
            f"{quoted(given[0])}: a task measures its own metric on its test rows; expected "
            "--data, --rows, --model, --out or --json"
        )


def _table(task: str, reports: Mapping[str, Any], report: Mapping[str, Any]) -> Table:
    first = next(iter(reports.values()))
    tests = list(first.get("tests", {}))
    columns = [*tests, "mean"] if tests else ["test"]
    sizes = listing(
        f"{count} {split}" for split, count in first["rows"].items() if split.startswith("test")
    )
    table = Table("checkpoint", *columns, title=f"{task}: {first['metric']}, {sizes} rows")
    for name, one in reports.items():
        table.add_row(name, *_cells(one, tests))
    if len(reports) > 1:
        means, spreads = _cells(report["mean"], tests), _cells(report["sd"], tests)
        both = (f"{mean} ± {spread}" for mean, spread in zip(means, spreads, strict=True))
        table.add_row("mean ± sd", *both)
    return table


def _cells(figures: Mapping[str, Any], tests: Sequence[str]) -> list[str]:
    scores = [*(figures["tests"][name] for name in tests), figures["test"]]
    return [f"{100 * score:.1f}" for score in scores]
