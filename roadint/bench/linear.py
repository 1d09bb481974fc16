"""`roadint bench linear`: adapters on linear layers beside PEFT's, and a LoRA of batched products.

It measures, in one process with all systems in turns, the wall-clock time of one layer in batches
whose rows have different adapters ("layer"), of one-token steps of a whole model ("decode"), of the
pass over prompts ("prefill"), of merging ("merge"), the memory that a layer keeps for its gradient
("memory"), and what a compiled step launches and reads ("traffic"). "over_base" is the median ratio
of a system's time to the base's in the same turn.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from roadint.bench.linear_memory import memory_cases
from roadint.bench.linear_merging import merging_cases
from roadint.bench.linear_models import WholeModel
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
from roadint.bench.machine import default_device, machine
from roadint.bench.shapes import noise
from roadint.bench.steps import MODES, Mode, modes_on
from roadint.bench.timing import compare, ratios_of, seconds_of
from roadint.progress import track

WIDTHS, TOKENS, ADAPTERS, ROWS = (576, 1024, 2048, 4096), (1, 128), (1, 8, 64), 64
DEFAULT_PARTS = ("layer", "decode", "merge", "memory")
PARTS = (*DEFAULT_PARTS, "prefill", "traffic")
_PREFILL = (8, 512)  # rows, tokens
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
    shape: str | None = None,
    parts: Sequence[str] = DEFAULT_PARTS,
    widths: Sequence[int] = WIDTHS,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    modes: Sequence[Mode] = MODES,
    rivals: Sequence[Maker] = _MAKERS[2:],
    runs: int = 15,
    steps: int = 16,
    rows: Sequence[int] = (8, ROWS),
    prefill: tuple[int, int] = _PREFILL,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure adapters on linear layers.

    Args:
        model: For the decode; hub id, folder or short name.
        shape: A name in `roadint.bench.shapes.SHAPES`: decode, prefill and merge take a model of
            that shape with random weights.
        parts: "layer" (64 rows; 1 and 128 tokens; 1, 8 and 64 adapters), "decode" (8 rows with 1
            and 8 adapters, 64 rows with 1 and 64, the rivals beside up to 8), "prefill" (8 rows, 8
            adapters), "merge" (2,048 × 2,048, in and out, alone and in a stack of eight; all layers
            of a shape), "memory" (one layer of the first width), "traffic" (launches of a
            compiled step, and the parameters that it reads: 8 rows, 8 adapters).
        widths: The widths of layers.
        dtypes: The dtypes of layers and decodes.
        modes: Of the steps of a shape: "eager"; "graph", captured by hand on a GPU; "generate", as
            users call it, compiled on a GPU.
        rivals: What decode and prefill with 8 rows compare with.
        runs: The runs of every system.
        steps: The steps of a decode.
        rows: The rows of a decode, which has one adapter, and one a row.
        prefill: The rows, each with an adapter of its own, and the tokens of a prefill.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "cases", "ratios"}. A system that fails in a dtype has "error".
    """
    chosen = [getattr(torch, name) for name in dtypes]
    few = max(3, runs // 2) if runs > 2 else runs
    # A fixed mask suits LLaMAs alone.
    graphs = modes_on(default_device(), modes if shape is not None else ("eager",))
    whole = WholeModel(model, shape, chosen, rivals, few, quiet)
    measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "layer": lambda: _layer_cases(widths, chosen, runs, quiet),
        "decode": lambda: whole.decode(rows, graphs, steps),
        "prefill": lambda: whole.prefill(*prefill),
        "merge": lambda: merging_cases(runs) if shape is None else whole.merge(),
        "memory": lambda: memory_cases(widths[0]),
        "traffic": whole.traffic,
    }
    with torch.no_grad():
        cases = [row for part in parts for row in measure[part]()]
    job = {"model": shape or model, "parts": list(parts), "rows": ROWS, "rank": RANK}
    return {
        "machine": machine(default_device(), chosen[0]),
        "job": job,
        "cases": cases,
        "ratios": ratios_of(cases),
    }


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
    device = default_device()
    layer = SingleLinear(width, dtype, device).eval()
    x = noise(ROWS, tokens, width, like=layer.layer.weight, seed=1)
    systems = [make(layer, ["layer"], count) for make in _MAKERS]
    rows = [number % count for number in range(ROWS)]
    repeat = 20 if tokens == 1 else 1

    def once(system: LinearSystem) -> float:
        with system.context(rows) as module:
            keywords = system.keywords(rows)

            def act() -> None:
                for _ in range(repeat):
                    module(x, **keywords)

            return seconds_of(act, device) / repeat

    shape = {"width": width, "tokens": tokens, "adapters": count, "rows": ROWS}
    about = {**shape, "dtype": str(dtype).removeprefix("torch.")}
    return compare("layer", systems, once, runs, about, quiet=True)
