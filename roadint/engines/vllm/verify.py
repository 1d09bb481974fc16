"""`python -m roadint.engines.vllm.verify MODEL CHECKPOINT`: does vLLM do what RoadModel does?

It runs a mixed batch in vLLM, cold and with a warm prefix cache, then the same tokens in RoadModel
on transformers, in float32, and says which tokens and log-probabilities agree (needs vLLM).
"""

import gc
import itertools
import sys
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

import roadint
from roadint.data.sources import load_prompts
from roadint.engines.vllm import control
from roadint.engines.vllm.comparison import (
    TOLERANCE,
    Answer,
    ask_engine,
    ask_road_model,
    largest_difference,
)
from roadint.engines.vllm.served import formats_of
from roadint.engines.vllm.settings import KEY
from roadint.errors import RoadError
from roadint.progress import waiting

_PROMPTS = 3  # of the paper's
_LENGTH = 512  # tokens that a row may have
_CACHE = 1 << 30  # bytes: rows wait where there is no room


def verify(
    model: Annotated[str, typer.Argument(help="Short name, folder or hub id of the base model.")],
    checkpoint: Annotated[str, typer.Argument(help="Folder or hub id of the checkpoint.")],
    compose: Annotated[
        list[str] | None, typer.Option(help="A composition, repeatable; several by default.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt, repeatable; three of the paper's.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer, in tokens.")] = 12,
    dtype: Annotated[
        str, typer.Option(help="vLLM's: float32, bfloat16 or float16; RoadModel has float32.")
    ] = "float32",
    eager: Annotated[
        bool, typer.Option("--eager", help="Without compiled and captured graphs: starts quicker.")
    ] = False,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="As vLLM's.")] = 1,
) -> None:
    """Compare a mixed batch in vLLM with RoadModel; exit code 1 where they disagree."""
    source = roadint.source_of(model)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with waiting("vLLM starts", quiet=False):
        llm = _start(source, checkpoint, dtype, eager, tensor_parallel_size)
    names = [name for about in control.served(llm).values() for name in about["names"]]
    # The base model too: what is allowed in half precision is by how much it is off itself.
    asked_for = [text for text in compose or () if text.strip() != "none"]
    texts: list[str | None] = [None, *asked_for] if compose else _some(names)
    encode = llm.get_tokenizer().encode
    prompts = [tuple(encode(text)) for text in prompt or load_prompts("bundled:prompts_paper")]
    pairs = list(itertools.product(texts, prompts if prompt else prompts[:_PROMPTS]))
    asked = [prompt for _, prompt in pairs], [text for text, _ in pairs], new_tokens
    with waiting("vLLM answers", quiet=False):
        answers = ask_engine(llm, *asked)
        warm = largest_difference(answers, ask_engine(llm, *asked))
        bare = [answer for answer in answers if answer.composition is None]
        alone = [ask_engine(llm, [answer.prompt], [None], new_tokens)[0] for answer in bare]
    spread = largest_difference(bare, alone)
    _stop(llm)
    del llm
    with waiting("RoadModel answers", quiet=False):
        loaded, _ = roadint.load(model, dtype="float32")  # in half precision it would round, too
        road = roadint.RoadModel.from_pretrained(loaded, checkpoint)
        answers = ask_road_model(road, answers)
    _show(console, texts, answers)
    own = max((answer.worst for answer in answers if answer.composition is None), default=0.0)
    # In half precision vLLM rounds: by as much as on the bare model, or on another batch.
    allowed = TOLERANCE if dtype == "float32" else 2 * max(own, spread, TOLERANCE)
    worst = max(answer.worst for answer in answers)
    agree = worst <= allowed and (dtype != "float32" or all(all(a.greedy) for a in answers))
    console.print(
        f"largest difference of a log-probability {worst:.2g} nats (allowed {allowed:.2g}); bare "
        f"model {own:.2g}; warm and cold prefix cache {warm:.2g}; in a batch and alone {spread:.2g}"
    )
    console.print("they agree" if agree and warm <= allowed else "they DISAGREE")
    raise typer.Exit(0 if agree and warm <= allowed else 1)


def _start(source: str, checkpoint: str, dtype: str, eager: bool, processes: int) -> Any:
    try:
        from vllm import LLM
    except ImportError:
        raise RoadError("vLLM is not installed: pip install 'vllm==0.32.*'") from None
    settings: dict[str, Any] = {"checkpoints": {"": checkpoint}}
    model_type = AutoConfig.from_pretrained(source).get_text_config().model_type
    return LLM(
        source,
        **formats_of(model_type),
        dtype=dtype,
        enforce_eager=eager,
        tensor_parallel_size=processes,
        max_model_len=_LENGTH,
        max_num_seqs=32,
        kv_cache_memory_bytes=_CACHE,
        additional_config={KEY: settings},
    )


def _stop(llm: Any) -> None:
    """Give the engine's memory back: RoadModel needs it."""
    llm.llm_engine.engine_core.shutdown()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _some(names: list[str]) -> list[str | None]:
    """The base model, and every name at some strengths."""
    texts: list[str | None] = [None]
    for name in names:
        texts += [name, f"0.5*{name}", f"-1*{name}"]
    return texts


def _show(console: Console, texts: list[str | None], answers: list[Answer]) -> None:
    table = Table("composition", "answers", "tokens that agree", "largest difference, nats")
    for text in texts:
        of_text = [answer for answer in answers if answer.composition == text]
        tokens = sum(len(answer.tokens) for answer in of_text)
        agreeing = sum(answer.agreeing for answer in of_text)
        worst = max(answer.worst for answer in of_text)
        table.add_row(text or "none", str(len(of_text)), f"{agreeing} of {tokens}", f"{worst:.2g}")
    console.print(table)


def main() -> None:
    """Run the command; a RoadError is one line and exit code 2."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(verify)
    try:
        app()
    except RoadError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
