"""`roadint generate`: answers to prompts, compositions side by side."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

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


def generate(
    checkpoint: CheckpointName,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; the paper's nine by default.")
    ] = None,
    prompt_file: PromptFile = None,
    compose: Compositions = None,
    add: Added = None,
    max_new_tokens: NewTokens = 128,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Answers in one batch, compositions mixed.")
    ] = 36,
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
    from roadint.evaluation.answers import answer_all
    from roadint.grammar.composition import Composition
    from roadint.model.opening import open_checkpoint

    check_file("--out", out)
    _check_format(form, compose)
    asked = [*(prompts or []), *(read_prompts(prompt_file) if prompt_file else [])]
    asked = asked or read_prompts("bundled:prompts_paper")
    road, tokenizer = open_checkpoint(checkpoint, model, compose, named_values(add, "--add"))
    compositions = road.compositions()
    if compose:
        compositions = [Composition.parse(text, road.names) for text in compose]
    answers = answer_all(
        road,
        tokenizer,
        asked,
        compositions,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        quiet=as_json,
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
        texts = list(map(prompt_text, asked))
        console.print(_table(texts, list(map(str, compositions)), answers), markup=False)


def _check_format(form: str | None, compose: Sequence[str] | None) -> None:
    if form is None:
        return
    check_known("format", form, [ALPACA_EVAL])
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


def _table(
    prompts: Sequence[str], compositions: Sequence[str], answers: Sequence["Answer"]
) -> Table:
    """A prompt a row, a composition a column; the answers come in that order."""
    table = Table("prompt", *compositions, show_lines=True)
    texts = (" ".join(answer.text.split()) for answer in answers)
    for prompt in prompts:
        table.add_row(prompt, *(next(texts) for _ in compositions))
    return table
