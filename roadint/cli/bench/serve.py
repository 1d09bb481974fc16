"""`roadint bench serve`: vLLM with roadint, bare, and with its own LoRA."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from roadint.cli.bench.options import Layer, Model, Runs, check_outputs
from roadint.cli.bench.output import bars_table, duration, keep_report, machine_line
from roadint.cli.options import Json, Plot, ReportFile, named_values
from roadint.cli.output import console, print_line
from roadint.errors import RoadError, check_known

_CACHES = {"off": (False,), "on": (True,), "both": (False, True)}
_PHASES = ("prompt", "both")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def serve(
    model: Model = "smollm2-135m",
    requests: Annotated[int, typer.Option(min=1, help="That come at once.")] = 256,
    prompt_tokens: Annotated[
        int, typer.Option(min=2, help="Of a prompt; all prompts have the same first half.")
    ] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of every answer.")] = 32,
    compositions: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="Different ones among the requests, repeatable; 0, 1, 8, 32, 64, 128 and 256 by "
            "default.",
        ),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="bare, hidden, adapters or lora, repeatable; all by default."),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="throughput or thread-time, repeatable; both by default."),
    ] = None,
    cache: Annotated[str, typer.Option(help="The prefix cache: on, off, or both.")] = "both",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    layer: Layer = None,
    phase: Annotated[
        str,
        typer.Option(
            help="Hidden states are edited at the prompt's last token (prompt), or at all that "
            "follow it, too (both)."
        ),
    ] = "both",
    max_loras: Annotated[
        int | None, typer.Option(min=1, help="No LoRA engine with more of them.")
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compiled/--eager", help="Whether vLLM compiles the model; on a GPU by default."
        ),
    ] = None,
    together: Annotated[
        bool | None,
        typer.Option(
            "--together/--one-by-one",
            help="Whether all engines are there at once and take turns; on a CPU by default.",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, repeatable: an argument of vLLM's engine."),
    ] = None,
    runs: Runs = 3,
    out: ReportFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Tokens a second, and the time to the first token, of requests to vLLM.

    256 requests come at once, with 0 to 256 different compositions among
    them: hidden-state edits, adapters on all linear layers, one or three
    subspaces at a layer. Beside them: the bare engine, and vLLM's own LoRA.
    And the thread time inside roadint, as a share of the forward passes.

    On a GPU vLLM compiles, captures CUDA graphs, and engines come one after
    the other. With a model of 7B and 80 GB (256 LoRAs take 10 GB of them:
    --max-loras 64 where there is less):

    roadint bench serve --model meta-llama/Llama-2-7b-hf --dtype bfloat16
    --prompt-tokens 512 --new-tokens 128 --engine gpu_memory_utilization=0.85
    --out serve.json --plot serve.png

    On a CPU vLLM's LoRA is so slow that --max-loras 8 saves most of the time:

    roadint bench serve --requests 32 --compositions 1 --compositions 32
    --new-tokens 8 --cache off --max-loras 8 --runs 1
    """
    from roadint.bench.machine import default_device
    from roadint.bench.serve import COUNTS, PARTS, bench_serve
    from roadint.bench.serve_inputs import ServeJob
    from roadint.bench.serve_report import SYSTEMS

    check_outputs(out, plot)
    checks: list[tuple[str, list[str], Iterable[str]]] = [
        ("system", system or [], SYSTEMS),
        ("part", part or [], PARTS),
        ("cache", [cache], _CACHES),
        ("phase", [phase], _PHASES),
        ("dtype", [dtype], _DTYPES),
    ]
    for what, names, known in checks:
        for name in names:
            check_known(what, name, known)
    settings = {name: _value(text) for name, text in named_values(engine, "--engine").items()}
    check_vllm()
    job = ServeJob(
        model,
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        dtype=dtype,
        layer=layer,
        phase=phase,
        compiled=default_device().type == "cuda" if compiled is None else compiled,
        engine=tuple(settings.items()),
    )
    report = bench_serve(
        job,
        systems=tuple(system or SYSTEMS),
        counts=tuple(compositions or COUNTS),
        caches=_CACHES[cache],
        parts=tuple(part or PARTS),
        max_loras=max_loras,
        runs=runs,
        together=together,
        quiet=as_json,
    )
    keep_report(report, out, plot, as_json, "serve_figure", show=_show)


def check_vllm() -> None:
    """Check that vLLM is installed, without its import, which takes ten seconds.

    Raises:
        RoadError: where it is not.
    """
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise RoadError("vLLM is not installed here: expected an environment that has it")


def _value(text: str) -> Any:
    """A value of the engine: JSON where it is any, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _show(report: Mapping[str, Any]) -> None:
    about = report["machine"]
    print_line(f"{machine_line(about)}, vLLM {about['vllm']}, model runner {about['model_runner']}")
    measured = [bar for bar in report["bars"] if bar["value"] is not None]
    for table in (_served(report), _thread_times(report), bars_table(measured)):
        if table.row_count:
            console.print(table)
    for case in report["cases"]:
        if "error" in case:
            print_line(f"failed: {case['name']}, {case['system']}: {case['error']}")


def _served(report: Mapping[str, Any]) -> Table:
    table = Table(
        "case", "compositions", "system", "tokens a second", "first token", "a token", "cached"
    )
    for case in report["cases"]:
        if "tokens_per_s" in case:
            table.add_row(
                case["name"],
                str(case["compositions"]),
                case["system"],
                f"{case['tokens_per_s']:,.0f}",
                duration(case["ttft_s"]),
                duration(case["tpot_s"]),
                f"{case['cached_share']:.0%}",
            )
    return table


def _thread_times(report: Mapping[str, Any]) -> Table:
    table = Table("system", "compositions", "inside roadint", "of the forward", "steps")
    for case in report["cases"]:
        if "share" in case:
            table.add_row(
                case["system"],
                str(case["compositions"]),
                duration(case["median_s"]),
                f"{case['share']:.2%}",
                str(case["steps"]),
            )
    return table
