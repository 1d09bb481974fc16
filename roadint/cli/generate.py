"""`roadint generate`: answers to prompts, compositions side by side."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

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
from roadint.cli.output import console, print_json

if TYPE_CHECKING:
    from roadint.evaluation.answers import Answer


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
    as_json: Json = False,
) -> None:
    """Answer prompts through several compositions side by side, in mixed batches."""
    from roadint.data.sources import load_prompts
    from roadint.evaluation.answers import answer_all
    from roadint.grammar.composition import Composition
    from roadint.model.opening import open_checkpoint

    asked = [*(prompts or []), *(load_prompts(prompt_file) if prompt_file else [])]
    asked = asked or load_prompts("bundled:prompts_paper")
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
    if as_json:
        print_json([asdict(answer) for answer in answers])
    else:
        console.print(_table(asked, list(map(str, compositions)), answers), markup=False)


def _table(
    prompts: Sequence[str], compositions: Sequence[str], answers: Sequence["Answer"]
) -> Table:
    """A prompt a row, a composition a column; the answers come in that order."""
    table = Table("prompt", *compositions, show_lines=True)
    texts = (" ".join(answer.text.split()) for answer in answers)
    for prompt in prompts:
        table.add_row(prompt, *(next(texts) for _ in compositions))
    return table
