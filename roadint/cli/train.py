"""`roadint train`: a recipe, trained and saved."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roadint.cli.checks import check_folder
from roadint.cli.options import Base, Data, Json, MaxRows, Settings, named_values, overrides
from roadint.cli.output import print_json, print_line, tested
from roadint.errors import RoadError, listing, quoted

if TYPE_CHECKING:
    from roadint.recipes.recipe import Recipe


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A preset (composition, custom, glue, …; see `roadint recipes`) or a YAML file."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the trained checkpoint.")],
    data: Data = None,
    rows: MaxRows = None,
    max_completion: Annotated[
        int | None, typer.Option(min=1, help="Cut completions at this many tokens.")
    ] = None,
    settings: Settings = None,
    model: Base = None,
    resume: Annotated[bool, typer.Option(help="Go on with an unfinished run in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Replace a finished checkpoint in --out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train all subspaces of a recipe at once, each data set through its own."""
    from roadint.checkpoint.reading import size_of
    from roadint.recipes.recipe import Recipe
    from roadint.training import run_folder
    from roadint.training.processes import is_first

    check_folder("--out", out)
    sources = named_values(data, "--data")
    changes = overrides(settings, rows=rows, max_completion=max_completion, model=model)
    chosen = Recipe.load(recipe, changes)
    if not chosen.task.name and not (sources or chosen.data.sources):
        raise RoadError(
            "no data given: expected --data NAME=SOURCE, a composition and what trains it"
        )
    chosen = chosen.learning(sources)
    chosen.interventions()  # what does not fit is refused before a model is loaded
    if run_folder.is_finished(out) and not overwrite:
        if not resume:
            raise RoadError(
                f"--out {out} holds a finished checkpoint: choose another folder, or add "
                "--overwrite"
            )
        summary = _finished(chosen, sources, out)
    elif chosen.task.name:
        summary = _finetune(chosen, sources, out, resume=resume, quiet=as_json)
    else:
        summary = _train(chosen, sources, out, resume=resume, quiet=as_json)
    if not is_first():
        return
    size = size_of(out)
    if as_json:
        print_json({"checkpoint": str(out), "bytes": size, **summary})
    else:
        print_line(
            f"{out}: {summary['trainable']:,} trained numbers, {size:,} bytes; "
            f"{summary['steps']} steps in {summary['seconds']:.0f} s; {_result(summary)}"
        )


def _finished(recipe: "Recipe", sources: Mapping[str, str], out: Path) -> Mapping[str, Any]:
    """The summary of a finished run; raises RoadError where its settings differ."""
    from roadint.checkpoint.reading import read
    from roadint.training import run_folder

    saved = read(out)
    run_folder.check_same_recipe(out, saved, recipe, sources)
    summary: Mapping[str, Any] = saved.config["training"]
    run_folder.finish(out)
    return summary


def _finetune(
    recipe: "Recipe", sources: Mapping[str, str], out: Path, *, resume: bool, quiet: bool
) -> Mapping[str, Any]:
    from roadint.tasks.run import finetune

    if resume:
        raise RoadError(
            f"--resume: a run of task {recipe.task.name!r} starts anew; expected --overwrite, or "
            "another --out"
        )
    return finetune(recipe, data=dict(sources) or None, out=out, quiet=quiet)[1]


def _train(
    recipe: "Recipe", sources: Mapping[str, str], out: Path, *, resume: bool, quiet: bool
) -> Mapping[str, Any]:
    from roadint.data.image_text.conversations import load_conversations
    from roadint.data.sources import check_sources
    from roadint.model.pretrained import load, load_processor
    from roadint.training.run import train as run

    # Before the model is loaded, which takes longer than reading the rows twice.
    used = sources or recipe.data.sources
    _check_names(used, recipe.names())
    if recipe.data.images:
        for source in used.values():
            load_conversations(source, recipe.data.rows)
    else:
        check_sources(used, recipe.data.rows)
    base, tokenizer = load(recipe.model.name, dtype=recipe.model.dtype)
    reader = load_processor(recipe.model.name) if recipe.data.images else tokenizer
    road = recipe.on(base)
    try:
        return run(road, reader, sources or None, recipe, out=out, resume=resume, quiet=quiet)
    except KeyboardInterrupt:
        print("roadint: the same command with --resume goes on", file=sys.stderr)
        raise


def _check_names(sources: Mapping[str, str], names: list[str]) -> None:
    """Check the names of data sets, which are the compositions that they train."""
    from roadint.grammar.composition import Composition

    for name in sources:
        if not Composition.parse(name, names).terms:
            raise RoadError(
                f"data set {quoted(name)} trains nothing: expected a composition of "
                f"{listing(names)}"
            )


def _result(summary: Mapping[str, Any]) -> str:
    """The result of a training: a task's metric, or the losses of data sets."""
    if "test" in summary:
        epochs = [round(100 * score, 1) for score in summary["validation"]]
        return (
            f"{tested(summary)}, on the {summary['rows']['validation']} validation rows by epoch "
            f"{epochs}"
        )
    losses = ", ".join(
        f"{name.removeprefix('loss/')} {float(value):.2f}"  # "nan" in a checkpoint
        for name, value in summary["loss"].items()
        if "/" in name
    )
    return f"last training loss (nats a token): {losses or 'none, there is one for every 10 steps'}"
