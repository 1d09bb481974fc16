"""`roadint generate`: answers to prompts, compositions side by side."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from roadint.cli.checks import check_file
from roadint.cli.options import (
    Added,
    Base,
    CheckpointName,
    Compositions,
    Json,
    NewTokens,
    PromptFile,
    named_values,
)
from roadint.cli.output import console, print_line, report_json
from roadint.errors import RoadError, check_known

if TYPE_CHECKING:
    from roadint.evaluation.answers import Answer
    from roadint.grammar.composition import Composition

ALPACA_EVAL = "alpaca_eval"
_READABLE = 24  # columns of a cell: whole words


def generate(
    checkpoint: CheckpointName,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; the paper's nine by default.")
    ] = None,
    prompt_file: PromptFile = None,
    turns: Annotated[
        bool,
        typer.Option(
            "--turns",
            help="The prompts are turns of a conversation; a composition reads its own answers.",
        ),
    ] = False,
    compose: Compositions = None,
    add: Added = None,
    max_new_tokens: NewTokens = 128,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Answers in one batch, compositions mixed.")
    ] = 36,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 is greedy: the same answers every time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling, with a temperature.")] = 0,
    model: Base = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="alpaca_eval: the JSON that `alpaca_eval --model_outputs` takes, of one "
            "composition.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the answers, as JSON, to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer prompts through several compositions side by side, in mixed batches."""
    from roadint.data.prompt_files import read_prompts
    from roadint.data.prompts import prompt_text
    from roadint.evaluation.alpaca_eval import model_outputs
    from roadint.evaluation.answers import answer_all, converse
    from roadint.grammar.composition import Composition
    from roadint.model.opening import open_checkpoint

    check_file("--out", out)
    _check_format(form, compose, turns)
    asked = [*(prompts or []), *(read_prompts(prompt_file) if prompt_file else [])]
    if turns and not asked:
        raise RoadError("--turns is of the prompts that are given: expected at least two of them")
    asked = asked or read_prompts("bundled:prompts_paper")
    road, tokenizer = open_checkpoint(checkpoint, model, compose, named_values(add, "--add"))
    compositions = road.compositions()
    if compose:
        compositions = [Composition.parse(text, road.names) for text in compose]
    settings = {"max_new_tokens": max_new_tokens, "quiet": as_json, **_sampling(temperature, seed)}
    if turns:
        said = list(map(prompt_text, asked))
        answers = converse(road, tokenizer, said, compositions, **settings)
    else:
        answers = answer_all(
            road, tokenizer, asked, compositions, batch_size=batch_size, **settings
        )
    written: Any = [asdict(answer) for answer in answers]
    if form == ALPACA_EVAL:
        name = _generator(str(road.model.name_or_path), checkpoint, compositions[0])
        written = model_outputs(asked, answers, name)
    printed = as_json or (form == ALPACA_EVAL and out is None)
    report_json(written, out, printed)
    if printed:
        return
    if form == ALPACA_EVAL:
        print_line(f"{out}: {len(answers)} answers of {name}")
    else:
        _show(list(map(prompt_text, asked)), list(map(str, compositions)), answers)


def _sampling(temperature: float, seed: int) -> dict[str, Any]:
    if not temperature:
        return {}
    from transformers import set_seed

    set_seed(seed)
    return {"do_sample": True, "temperature": temperature}


def _check_format(form: str | None, compose: Sequence[str] | None, turns: bool) -> None:
    if form is None:
        return
    check_known("format", form, [ALPACA_EVAL])
    if turns:
        raise RoadError(f"--format {form} is of single prompts: expected it without --turns")
    if len(compose or ()) != 1:
        raise RoadError(
            f"--format {form} is of one composition, {len(compose or ())} are given: expected one "
            "--compose, such as none or a subspace, and an --out for each"
        )


def _generator(base: str, checkpoint: str, composition: "Composition") -> str:
    """The name of what answers: base model, checkpoint and composition, without slashes.

    AlpacaEval makes a folder of this name.
    """
    if not composition.terms:
        return _last(base)
    return f"{_last(base)} + {_last(checkpoint)} ({composition})".replace("/", "-")


def _last(name: str) -> str:
    """The last part of a hub id or a folder."""
    return Path(name).resolve().name


def _show(prompts: Sequence[str], compositions: Sequence[str], answers: Sequence["Answer"]) -> None:
    """A table where columns of it can be read, else a block for every prompt.

    A prompt is a row, a composition a column; the answers come in that order.
    """
    texts = (" ".join(answer.text.split()) for answer in answers)
    rows = [(prompt, [next(texts) for _ in compositions]) for prompt in prompts]
    if console.width >= _READABLE * (1 + len(compositions)):
        table = Table("prompt", *compositions, show_lines=True)
        for prompt, row in rows:
            table.add_row(prompt, *row)
        console.print(table)
        return
    for prompt, row in rows:
        console.print(Text(prompt, style="bold"))
        for composition, text in zip(compositions, row, strict=True):
            console.print(Text(composition, style="cyan"))
            console.print(Padding(Text(text), (0, 0, 0, 2)))
        console.print()
