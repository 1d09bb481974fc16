"""The command line of roadint: results on stdout (tables, or --json), everything else on stderr."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.adapters import export, import_, merge
from roadint.cli.bench import app as bench
from roadint.cli.demo import demo
from roadint.cli.evaluate import evaluate
from roadint.cli.inspect import inspect
from roadint.cli.sweep import sweep
from roadint.cli.terminal import (
    Added,
    Base,
    Composed,
    Data,
    Json,
    NewTokens,
    Prompts,
    Rows,
    check_compositions,
    check_folder,
    console,
    overrides,
    pairs,
    print_json,
)
from roadint.errors import RoadError, first_line
from roadint.version import __version__

app = typer.Typer(
    help="Learn, compose and inspect rotations of subspaces of a language model's hidden states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
app.command(name="eval")(evaluate)
app.command()(sweep)
app.command()(demo)
app.command()(inspect)
app.command()(merge)
app.command()(export)
app.command(name="import")(import_)

# Typer's errors of usage, from click or from the copy of it that newer ones bring.
_WrongUse: Any = typer.BadParameter.__mro__[2]

Checkpoint = Annotated[str, typer.Argument(help="Folder or hub id of a trained checkpoint.")]


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A preset (composition, composition-paper) or a YAML file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the trained checkpoint.")],
    data: Data = None,
    rows: Rows = None,
    max_completion: Annotated[
        int | None, typer.Option(min=1, help="Cut completions at this many tokens.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, repeatable: a setting of the recipe."),
    ] = None,
    model: Base = None,
    resume: Annotated[bool, typer.Option(help="Go on with an unfinished run in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Replace a finished checkpoint in --out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train all subspaces of a recipe at once, each data set through its own."""
    from roadint.model import checkpoint
    from roadint.recipes.recipe import Recipe
    from roadint.training import unfinished

    check_folder("--out", out)
    given = pairs(data, "--data")
    chosen = Recipe.load(
        recipe, overrides(settings, rows=rows, max_completion=max_completion, model=model)
    )
    chosen.interventions()  # a setting that does not fit is told before a model is loaded
    if unfinished.is_finished(out) and not overwrite:
        if not resume:
            raise RoadError(
                f"--out {out} holds a finished checkpoint: choose another folder, or add --overwrite"
            )
        saved = checkpoint.read(out)
        unfinished.check_same_recipe(out, saved, chosen, given)
        summary = saved.config["training"]
        unfinished.finish(out)
    else:
        summary = _train(chosen, given, out, resume, as_json)
    size = checkpoint.size_of(out)
    if as_json:
        print_json({"checkpoint": str(out), "bytes": size, **summary})
        return
    if "test" in summary:
        console.print(
            f"{out}: {summary['trainable']:,} trained numbers, {size:,} bytes; {summary['steps']} steps in "
            f"{summary['seconds']:.0f} s; {summary['metric']} on the {summary['rows']['test']} test rows "
            f"{100 * summary['test']:.1f}, on the "
            f"{summary['rows']['validation']} validation rows by epoch {[round(100 * each, 1) for each in summary['validation']]}",
            highlight=False,
        )
        return
    losses = ", ".join(
        f"{name.removeprefix('loss/')} {value:.2f}"
        for name, value in summary["loss"].items()
        if "/" in name
    )
    console.print(
        f"{out}: {summary['trainable']:,} trained numbers, {size:,} bytes; {summary['steps']} steps in {summary['seconds']:.0f} s; "
        f"last training loss (nats a token): {losses}",
        highlight=False,
    )


def _train(
    recipe: Any, data: Mapping[str, str], out: Path, resume: bool, quiet: bool
) -> Mapping[str, Any]:
    if recipe.task:
        from roadint.tasks.run import finetune

        if resume:
            raise RoadError(
                f"--resume: a run of task {recipe.task!r} starts anew; expected --overwrite, or another --out"
            )
        return finetune(recipe, data=dict(data) or None, out=out, quiet=quiet)[1]
    from roadint.data.sources import check_sources
    from roadint.model.pretrained import load
    from roadint.training.run import train as run

    # Before the model is loaded, which takes longer than reading the rows once more.
    sources = data or recipe.data
    if not sources:
        raise RoadError(
            "no data given: expected --data NAME=SOURCE, a composition and what trains it"
        )
    check_compositions(sources, recipe.adapter_names() or list(recipe.subspaces))
    check_sources(sources, recipe.rows)
    base, tokenizer = load(recipe.model, dtype=recipe.dtype)
    return run(
        recipe.on(base), tokenizer, data or None, recipe, out=out, resume=resume, quiet=quiet
    )


@app.command()
def generate(
    checkpoint: Checkpoint,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; the paper's nine by default.")
    ] = None,
    prompt_file: Prompts = None,
    compose: Composed = None,
    add: Added = None,
    max_new_tokens: NewTokens = 128,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Answers in one batch, compositions mixed.")
    ] = 36,
    model: Base = None,
    as_json: Json = False,
) -> None:
    """Answer prompts through several compositions side by side, in mixed batches."""
    from roadint.data.sources import load_prompts
    from roadint.evaluation.answers import answer_all
    from roadint.grammar.composition import Composition
    from roadint.model.opening import open_checkpoint

    asked = [*(prompts or []), *(load_prompts(prompt_file) if prompt_file else [])] or load_prompts(
        "bundled:prompts_paper"
    )
    road, tokenizer = open_checkpoint(checkpoint, model, compose, pairs(add, "--add"))
    compositions = (
        [Composition.parse(each, road.names) for each in compose]
        if compose
        else road.compositions()
    )
    answers = answer_all(
        road,
        tokenizer,
        asked,
        compositions,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        quiet=as_json,
    )
    if as_json:
        print_json([asdict(answer) for answer in answers])
        return
    table = Table("prompt", *map(str, compositions), show_lines=True)
    for index, prompt in enumerate(asked):
        row = answers[index * len(compositions) : (index + 1) * len(compositions)]
        table.add_row(prompt, *(_plain(answer.text) for answer in row))
    console.print(table, markup=False)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Learn, compose and inspect rotations of subspaces of a language model's hidden states."""
    if show:
        print(__version__)


def main() -> None:
    """Run the command line; bad input ends it with exit code 2 and one line."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("roadint").setLevel(logging.INFO)
    try:
        code = app(standalone_mode=False)
    except _WrongUse as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            raise SystemExit(2) from None
        said = " ".join(error.format_message().split())
    except typer.Abort:
        raise SystemExit(1) from None
    except RoadError as error:
        said = " ".join(str(error).split())
    except OSError as error:  # what the system does not let us read or write
        said = first_line(error)
    else:
        raise SystemExit(code if isinstance(code, int) else 0)
    print(f"roadint: {said}", file=sys.stderr)
    raise SystemExit(2)


def _plain(text: str) -> str:
    return " ".join(text.split())
