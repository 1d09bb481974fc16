"""`roadint bench gpu`: what roadint promises of speed on a GPU, measured in one run of minutes.

Every stage is a benchmark of its own on LLaMA-7B's shape with random weights. Its report is written
as soon as it is there, and with it the table of all bars so far, so that a run that is cut short
loses nothing. A stage for which no time is left, or that fails, is told, and the others run.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from roadint.bench.align import bench_align
from roadint.bench.bars import Report, bars_of
from roadint.bench.generate import bench_generate
from roadint.bench.linear import bench_linear
from roadint.bench.linear_systems import bmm_lora_system
from roadint.bench.machine import default_device, free_memory, machine
from roadint.bench.paper_training import training_cases
from roadint.bench.shapes import model_and_tokenizer
from roadint.bench.steps import Mode
from roadint.bench.timing import ratios_of
from roadint.bench.train import bench_train
from roadint.bench.train_systems import SYSTEMS, TrainingJob
from roadint.errors import first_line
from roadint.files.atomic import write_whole


@dataclass(frozen=True)
class Sizes:
    """The sizes of all stages; those of the promises by default, and small ones for tests.

    Attributes:
        shape: A name in `roadint.bench.shapes.SHAPES`.
        layer: The layer of edits of hidden states.
        runs: The runs of every system.
        steps: The steps of a decode's run.
        prefill: Rows and tokens of a prefill.
        training: Rows, tokens of the prompt and of the completion of a training step.
        adapters: Rows and tokens of a training step of adapters.
        widths: Of interchanges.
        generation: Prompts and new tokens of a generation.
    """

    shape: str = "llama-7b"
    layer: int = 15
    runs: int = 7
    steps: int = 16
    prefill: tuple[int, int] = (8, 512)
    training: tuple[int, int, int] = (8, 256, 64)
    adapters: tuple[int, int] = (8, 192)
    widths: tuple[int, int] = (2048, 4096)
    generation: tuple[int, int] = (64, 16)


def bench_gpu(
    out: Path,
    sizes: Sizes | None = None,
    *,
    stages: Sequence[str] = (),
    seconds: float = 570.0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the stages, the most important first, and compare with the bars.

    Args:
        out: A folder for the report of every stage and for `bars.json`.
        sizes: The sizes of the stages.
        stages: Names of stages; all by default.
        seconds: No stage begins after so many.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "stages", "errors", "bars"}: the seconds of every stage or why it has none, what
        systems failed of in stages, and verdicts.
    """
    chosen = sizes or Sizes()
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    device = default_device()
    reports: dict[str, Report] = {}
    result: dict[str, Any] = {
        "machine": machine(device, torch.bfloat16),
        "stages": {},
        "errors": [],
    }
    for name, run in stages_of(chosen, quiet).items():
        if stages and name not in stages:
            continue
        began = time.perf_counter()
        if began - started > seconds:
            result["stages"][name] = "no time was left"
        else:
            try:
                reports[name] = run()
            except Exception as error:  # whatever one stage dies of, the others run
                result["stages"][name] = f"{type(error).__name__}: {first_line(error)}"
            else:
                result["stages"][name] = round(time.perf_counter() - began, 1)
                result["errors"] += _errors_of(name, reports[name])
                write_whole(out / f"{name}.json", _as_text(reports[name]))
        free_memory(device)
        result["bars"] = [
            bar.verdict(reports) for bar in bars_of(chosen.widths, chosen.generation[0])
        ]
        write_whole(out / "bars.json", _as_text(result))
    return result


def stages_of(sizes: Sizes, quiet: bool = False) -> dict[str, Callable[[], Report]]:
    """The stages by name, in order: what runs them, and gives their reports.

    Args:
        sizes: The sizes of the stages.
        quiet: Whether there is no progress bar.
    """
    linear = partial(
        bench_linear,
        shape=sizes.shape,
        dtypes=("bfloat16",),
        rivals=(bmm_lora_system,),
        steps=sizes.steps,
        quiet=quiet,
    )
    prompts, new_tokens = sizes.generation
    rows, prompt, completion = sizes.training
    job = TrainingJob(
        sizes.shape,
        sizes.layer,
        max_completion=completion,
        batch_size=rows,
        shape=sizes.shape,
        prompt=prompt,
    )
    trained = [name for name in SYSTEMS if name in ("roadint", "roadint, compiled", "pyvene")]
    stages: dict[str, Callable[[], Report]] = {
        "decode": partial(
            linear, parts=("decode", "prefill"), prefill=sizes.prefill, runs=2 * sizes.runs
        ),
        "train": partial(bench_train, job, trained, steps=sizes.runs, quiet=quiet),
        "adapters": lambda: _adapters(sizes, quiet),
        "generate": partial(
            bench_generate,
            sizes.shape,
            shape=sizes.shape,
            layer=sizes.layer,
            batch_size=prompts,
            new_tokens=new_tokens,
            compositions=(prompts,),
            runs=2 * sizes.runs,  # eager steps vary, and the bar is narrow
            quiet=quiet,
        ),
    }
    for width in sizes.widths:
        stages[f"align-{width}"] = partial(
            bench_align,
            width,
            ("RotatedSpace",),
            steps=2 * sizes.runs,
            task_steps=20,
            quiet=quiet,
        )
    # PEFT takes 12 s to take its adapters out again.
    stages["merge"] = partial(linear, parts=("merge",), runs=min(2, sizes.runs))
    if default_device().type == "cuda":  # compiling takes minutes: last
        for count in (8, 64):
            modes: tuple[Mode, ...] = ("graph", "generate")
            compiled = partial(linear, parts=("decode",), modes=modes, rows=(count,))
            stages[f"compiled-{count}"] = partial(compiled, runs=2 * sizes.runs)
    return stages


def _errors_of(stage: str, report: Report) -> list[str]:
    """The systems that failed, for which the others of a stage did not stop."""
    return [
        f"{stage}, {case['name']}, {case['system']}: {case['error']}"
        for case in report["cases"]
        if "error" in case
    ]


def _as_text(report: Report) -> str:
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def _adapters(sizes: Sizes, quiet: bool) -> Report:
    base, tokenizer = model_and_tokenizer(sizes.shape, sizes.shape)
    methods = ("roadint RoAd1", "PEFT LoRA r=8", "PEFT RoAd")
    cases = training_cases(base, tokenizer, methods, *sizes.adapters, sizes.runs, quiet=quiet)
    about = machine(base.device, base.dtype)
    return {"machine": about, "cases": cases, "ratios": ratios_of(cases)}
