"""`roadint bench serve`: vLLM with roadint, bare, and with its own LoRA, at many compositions.

256 requests come at once, with 0, 1, 8, … 256 different compositions among them. Every engine has a
process of its own. On a CPU all engines with one setting of the prefix cache are there together and
take turns, run by run, so that a machine that slows down slows all of them alike; on a GPU, whose
memory an engine takes for itself, one comes after the other.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from roadint.bench.machine import default_device, machine
from roadint.bench.serve_engine import Batch, EngineSpec, ServedEngine
from roadint.bench.serve_inputs import SUBSPACES, Inputs, ServeJob, make_inputs
from roadint.bench.serve_report import (
    SYSTEMS,
    THREAD_TIME,
    name_of,
    served_case,
    served_ratios,
    system_of,
    thread_case,
    verdicts,
)
from roadint.bench.turns import rounds
from roadint.bench.workers import Worker
from roadint.errors import RoadError, first_line

logger = logging.getLogger(__name__)

COUNTS = (0, 1, 8, 32, 64, 128, 256)
PARTS = ("throughput", "thread-time")
_FEW_LORAS = 8  # an engine of its own: a LoRA engine is the slower, the more a batch may have


@dataclass
class Engine:
    """An engine in its process, and what it is asked for.

    Args:
        spec: The engine.
        worker: Its process.
        about: What it says of itself.
        error: Why it runs no longer.
    """

    spec: EngineSpec
    worker: Worker | None = None
    about: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def ask(self, method: str, *arguments: Any) -> Any:
        """Ask the engine; None, once it has failed."""
        if self.worker is None or self.error is not None:
            return None
        try:
            return self.worker.ask(method, *arguments)
        except RoadError as error:
            self.error = str(error)
            return None


@dataclass
class Timed:
    """A batch that an engine serves again and again.

    Args:
        engine: The engine.
        batch: The requests.
        runs: What was measured.
    """

    engine: Engine
    batch: Batch
    runs: list[Any] = field(default_factory=list)

    @property
    def system(self) -> str:
        """The name of the system."""
        fresh = ", new in every run" if self.batch.fresh else ""
        return system_of(self.engine.spec.kind, self.batch.subspaces) + fresh


def bench_serve(
    job: ServeJob,
    *,
    systems: Sequence[str] = tuple(SYSTEMS),
    counts: Sequence[int] = COUNTS,
    caches: Sequence[bool] = (False, True),
    parts: Sequence[str] = PARTS,
    max_loras: int | None = None,
    runs: int = 3,
    together: bool | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Time the serving of requests.

    Args:
        job: What is served.
        systems: Kinds in `serve_report.SYSTEMS`.
        counts: How many different compositions requests have; a case for each number.
        caches: Whether engines have a prefix cache: one setting, or both after each other.
        parts: "throughput", and "thread-time" inside roadint, which is measured on CPUs alone.
        max_loras: LoRA engines run no larger number of LoRAs; all by default.
        runs: The runs of every case.
        together: Whether engines are there at once and take turns; on a CPU by default.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "cases", "ratios", "bars"}.

    Raises:
        RoadError: for bad input, and where no engine runs.
    """
    counts = sorted({min(count, job.requests) for count in counts})
    device = default_device()
    if device.type == "cuda" and "thread-time" in parts:
        # Captured graphs call no operation from Python, and no thread's time sees a kernel.
        logger.info("thread time is not measured on a GPU, where it would leave all kernels out")
        parts = [part for part in parts if part != "thread-time"]
        if not parts:
            raise RoadError("part thread-time is measured on CPUs: expected part throughput")
    at_once = device.type == "cpu" if together is None else together
    cases: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="roadint-serve-") as scratch:
        folder = Path(scratch)
        inputs = make_inputs(job, folder)
        groups = [
            specs_of(systems, counts, cached, max_loras, folder)
            for cached in (caches if "throughput" in parts else ())
        ]
        for specs in groups:
            for group in [specs] if at_once else [[spec] for spec in specs]:
                with _started(group, job, inputs) as engines:
                    cases += _throughput(engines, job, runs, quiet)
                    about |= _said(engines)
        for spec in _measured_specs(systems, counts, folder) if "thread-time" in parts else ():
            with _started([spec], job, inputs) as engines:
                cases += _thread_times(engines[0], job, runs, quiet)
                about |= _said(engines)
    if not any("median_s" in case for case in cases):
        raise RoadError("no engine ran: " + "; ".join(first_line_of(case) for case in cases))
    dtype = getattr(torch, about.pop("dtype"))
    report: dict[str, Any] = {
        "machine": {**machine(device, dtype), **about},
        "job": {
            "model": job.model,
            "requests": job.requests,
            "prompt_tokens": job.prompt_tokens,
            "new_tokens": job.new_tokens,
            "phase": job.phase,
            "compiled": job.compiled,
            "engine": dict(job.engine),
        },
        "cases": cases,
        "ratios": served_ratios(cases),
    }
    return {**report, "bars": verdicts(report, counts)}


def specs_of(
    systems: Sequence[str],
    counts: Sequence[int],
    cached: bool,
    max_loras: int | None,
    folder: Path,
) -> list[EngineSpec]:
    """The engines of a comparison.

    Args:
        systems: Kinds in `serve_report.SYSTEMS`.
        counts: How many different compositions requests have.
        cached: Whether they have a prefix cache.
        max_loras: LoRA engines run no larger number of LoRAs; all by default.
        folder: Where their logs go.
    """
    specs: list[EngineSpec] = []
    for kind in systems:
        chosen: list[tuple[int, ...]] = [tuple(counts)]
        if kind == "bare":
            chosen = [(0,)]
        if kind == "lora":
            most = max(counts) if max_loras is None else max_loras
            few = tuple(count for count in counts if count <= min(_FEW_LORAS, most))
            many = tuple(count for count in counts if _FEW_LORAS < count <= most)
            chosen = [some for some in (few, many) if some]
        subspaces = tuple(SUBSPACES) if kind in ("hidden", "adapters") else (0,)
        for some in chosen:
            log = folder / f"{kind}-{len(specs)}-{cached}.log"
            slots = max((1, *some))
            specs.append(EngineSpec(kind, cached, some, subspaces, slots, str(log)))
    return specs


def _measured_specs(
    systems: Sequence[str], counts: Sequence[int], folder: Path
) -> list[EngineSpec]:
    few = tuple(sorted({0, 1, max(counts)}))
    return [
        EngineSpec(
            kind, False, few, tuple(SUBSPACES), 1, str(folder / f"{kind}-thread.log"), inside=True
        )
        for kind in ("hidden", "adapters")
        if kind in systems
    ]


@contextmanager
def _started(specs: Sequence[EngineSpec], job: ServeJob, inputs: Inputs) -> Iterator[list[Engine]]:
    """Engines that run, started one after the other, and give their memory back at the end."""
    engines: list[Engine] = []
    try:
        for spec in specs:
            engine = Engine(spec)
            engines.append(engine)
            arguments = (spec, job, inputs)
            engine.worker = Worker(SYSTEMS[spec.kind], ServedEngine, arguments, has_children=True)
            engine.about = engine.ask("about") or {}
            engine.ask("check")
        yield engines
    finally:
        for engine in engines:
            engine.ask("close")
            if engine.worker is not None:
                engine.worker.stop()


def _said(engines: Sequence[Engine]) -> dict[str, Any]:
    return {key: value for engine in engines for key, value in engine.about.items()}


def _throughput(
    engines: Sequence[Engine], job: ServeJob, runs: int, quiet: bool
) -> list[dict[str, Any]]:
    items = [Timed(engine, batch) for engine in engines for batch in batches_of(engine.spec)]
    name = name_of(engines[0].spec.cached)
    _take_turns(items, runs, "run", name, quiet)
    peaks = {id(engine): engine.ask("peak_mb") for engine in engines}
    cases = [_failure(name, engine) for engine in engines if engine.error is not None]
    for item in items:
        if item.runs:
            count, peak = item.batch.count, peaks[id(item.engine)]
            cases.append(served_case(name, item.system, count, item.runs, peak, job))
    return cases


def _thread_times(engine: Engine, job: ServeJob, runs: int, quiet: bool) -> list[dict[str, Any]]:
    items = [Timed(engine, batch) for batch in batches_of(engine.spec)]
    name = f"{THREAD_TIME}, {SYSTEMS[engine.spec.kind]}"
    _take_turns(items, runs, "measure", name, quiet)
    cases = [_failure(THREAD_TIME, engine)] if engine.error is not None else []
    return cases + [
        thread_case(item.system, item.batch.count, item.runs, job.requests)
        for item in items
        if item.runs
    ]


def batches_of(spec: EngineSpec) -> list[Batch]:
    """What an engine serves: every number of compositions with every number of subspaces.

    Args:
        spec: The engine.

    Returns:
        The batches; without edits there is one, whatever the subspaces, and at the end the largest
        number of compositions once more, which are new in every run.
    """
    edits = [number for number in spec.subspaces if number]
    batches = [Batch(0, 0)] if 0 in spec.counts else []
    for count in spec.counts:
        if count:
            batches += [Batch(count, number) for number in spec.subspaces]
    if edits and any(spec.counts):
        batches.append(Batch(max(spec.counts), max(edits), fresh=True))
    return batches


def _take_turns(items: Sequence[Timed], runs: int, method: str, name: str, quiet: bool) -> None:
    for number, item in rounds(items, runs, name, quiet=quiet):
        if number:
            result = item.engine.ask(method, item.batch)
            if result is not None:
                item.runs.append(result)
        else:
            item.engine.ask("warm_up", item.batch)


def _failure(name: str, engine: Engine) -> dict[str, Any]:
    return {"name": name, "system": SYSTEMS[engine.spec.kind], "error": engine.error}


def first_line_of(case: dict[str, Any]) -> str:
    """What a case says of a failure, in a line."""
    return f"{case['system']}: {first_line(RoadError(case['error']))}"
