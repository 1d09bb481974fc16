"""`roadint bench linear`: adapters on linear layers beside PEFT's, and a LoRA of batched products.

It measures, in one process with all systems in turns, the wall-clock time of one layer in batches
whose rows have different adapters ("layer"), of one-token steps of a whole model ("decode"), of
merging ("merge"), and the memory that a layer keeps for its gradient ("memory"). "over_base" is the
median ratio of a system's time to the base's in the same turn.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from roadint.adapters.targets import find_targets
from roadint.architecture.properties import cache_name
from roadint.bench.linear_memory import memory_cases
from roadint.bench.linear_merging import merging_cases
from roadint.bench.linear_systems import (
    RANK,
    LinearSystem,
    Maker,
    SingleLinear,
    base_system,
    bmm_lora_system,
    peft_lora_system,
    peft_road_system,
    road_system,
)
from roadint.bench.machine import machine
from roadint.bench.report import case
from roadint.bench.turns import rounds
from roadint.model.pretrained import load
from roadint.progress import track

WIDTHS, TOKENS, ADAPTERS, ROWS = (576, 1024, 2048, 4096), (1, 128), (1, 8, 64), 64
PARTS = ("layer", "decode", "merge", "memory")
_MAKERS: tuple[Maker, ...] = (
    base_system,
    road_system,
    peft_road_system,
    peft_lora_system,
    bmm_lora_system,
)


def bench_linear(
    model: str = "smollm2-135m",
    *,
    parts: Sequence[str] = PARTS,
    widths: Sequence[int] = WIDTHS,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    runs: int = 15,
    steps: int = 16,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure adapters on linear layers.

    Args:
        model: For the decode; hub id, folder or short name.
        parts: "layer" (64 rows; 1 and 128 tokens; 1, 8 and 64 adapters), "decode" (8 rows with 1
            and 8 adapters, 64 rows with 1 and 64), "merge" (2,048 × 2,048, in and out, alone and
            in a stack of eight), "memory" (one layer of the first width).
        widths: The widths of layers.
        dtypes: The dtypes of layers and decodes.
        runs: The runs of every system.
        steps: The steps of a decode.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "cases"}. A system that fails in a dtype has "error".
    """
    chosen = [getattr(torch, name) for name in dtypes]
    measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "layer": lambda: _layer_cases(widths, chosen, runs, quiet),
        "decode": lambda: _decode_cases(model, chosen, runs, steps, quiet),
        "merge": lambda: merging_cases(runs),
        "memory": lambda: memory_cases(widths[0]),
    }
    with torch.no_grad():
        cases = [row for part in parts for row in measure[part]()]
    job = {"model": model, "parts": list(parts), "rows": ROWS, "rank": RANK}
    return {"machine": machine(torch.device("cpu"), torch.float32), "job": job, "cases": cases}


def _layer_cases(
    widths: Sequence[int], dtypes: Sequence[torch.dtype], runs: int, quiet: bool
) -> list[dict[str, Any]]:
    shapes = [(width, tokens, count) for width in widths for tokens in TOKENS for count in ADAPTERS]
    cases = []
    for dtype in dtypes:
        for shape in track(shapes, len(shapes), f"layers, {dtype}", quiet=quiet):
            cases += _time_layer(*shape, dtype, runs)
    return cases


def _time_layer(
    width: int, tokens: int, count: int, dtype: torch.dtype, runs: int
) -> list[dict[str, Any]]:
    layer = SingleLinear(width, dtype).eval()
    x = torch.randn(ROWS, tokens, width, dtype=dtype)
    systems = [make(layer, ["layer"], count) for make in _MAKERS]
    rows = [number % count for number in range(ROWS)]
    repeat = 20 if tokens == 1 else 1

    def once(system: LinearSystem) -> float:
        with system.context(rows) as module:
            started = time.perf_counter()
            for _ in range(repeat):
                module(x, **system.keywords(rows))
            return (time.perf_counter() - started) / repeat

    shape = {"width": width, "tokens": tokens, "adapters": count, "rows": ROWS}
    return _timed("layer", systems, once, runs, {**shape, "dtype": _name_of(dtype)}, quiet=True)


def _decode_cases(
    model: str, dtypes: Sequence[torch.dtype], runs: int, steps: int, quiet: bool
) -> list[dict[str, Any]]:
    cases = []
    for dtype in dtypes:
        base, _ = load(model, dtype=dtype)
        base.requires_grad_(False)
        for rows, makers in ((8, _MAKERS), (ROWS, _MAKERS[:2])):
            about = {"rows": rows, "tokens": 1, "dtype": _name_of(dtype), "model": model}
            systems = _decoding_systems(base, rows, makers)
            once = _decode(base, rows, steps)
            cases += _timed("decode", systems, once, max(3, runs // 2), about, quiet=quiet)
    return cases


def _decoding_systems(
    base: PreTrainedModel, rows: int, makers: Sequence[Maker]
) -> list[LinearSystem]:
    """The base, and every other system twice: with one adapter for all rows, and with one a row."""
    paths = find_targets(base).paths
    base_alone, *others = [make(base, paths, rows) for make in makers]
    assignments = {"1 adapter": [0] * rows, f"{rows} adapters": list(range(rows))}
    return [
        base_alone,
        *(
            _assigned(system, adapters, label)
            for system in others
            for label, adapters in assignments.items()
        ),
    ]


def _assigned(system: LinearSystem, adapters: Sequence[int], label: str) -> LinearSystem:
    """A system in which every row has a fixed adapter."""
    return replace(
        system,
        name=f"{system.name}, {label}",
        context=lambda _: system.context(adapters),
        keywords=lambda _: system.keywords(adapters),
    )


def _decode(base: PreTrainedModel, rows: int, steps: int) -> Callable[[LinearSystem], float]:
    """A function that returns the median time of one-token steps after a prompt of 16 tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(10, base.config.vocab_size, (rows, 16), generator=draw)
    name = cache_name(base)

    def once(system: LinearSystem) -> float:
        cache = getattr(base(input_ids=ids, use_cache=True), name)
        times = []
        with system.context(()) as module:
            for _ in range(steps):
                inputs = {"input_ids": ids[:, :1], "use_cache": True, name: cache}
                started = time.perf_counter()
                module(**inputs, **system.keywords(()))
                times.append(time.perf_counter() - started)
        return median(times)

    return once


def _timed(
    name: str,
    systems: Sequence[LinearSystem],
    once: Callable[[LinearSystem], float],
    runs: int,
    about: dict[str, Any],
    *,
    quiet: bool,
) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {system.name: [] for system in systems}
    errors: dict[str, str] = {}
    description = f"{name}, {about['rows']} rows, {about['dtype']}"
    for number, system in rounds(systems, runs, description, quiet=quiet):
        if system.name in errors:
            continue
        try:
            seconds = once(system)
        except (RuntimeError, TypeError) as error:  # PEFT's mixed batches refuse half precision
            errors[system.name] = str(error).splitlines()[0]
            continue
        if number:
            times[system.name].append(seconds)
    cases = []
    for system_name, seconds_of_runs in times.items():
        if system_name in errors:
            refused = {"name": name, "system": system_name, "error": errors[system_name]}
            cases.append({**refused, **about})
            continue
        pairs = zip(seconds_of_runs, times["base"], strict=True)
        over = [seconds / base for seconds, base in pairs]
        timed = case(name, system_name, seconds_of_runs, None)
        cases.append({**timed, "over_base": round(median(over), 3), **about})
    return cases


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
