"""`roadint bench generate`: the model's own `generate`, with and without compositions, in one process and in turns."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from roadint.architecture.layers import find_layers
from roadint.architecture.properties import width_of
from roadint.bench import rival
from roadint.bench.measure import case, forget_peak, machine, peak_mb, ratio, wait_for
from roadint.bench.systems import HALVES
from roadint.bench.workers import in_turns
from roadint.data.prompts import batch_prompts
from roadint.data.sources import load_prompts
from roadint.interventions.road import RoadIntervention
from roadint.model.pretrained import load
from roadint.model.road_model import RoadModel
from roadint.progress import track


def bench_generate(
    model: str,
    *,
    layer: int | None = None,
    batch_size: int = 64,
    new_tokens: int = 32,
    compositions: Sequence[int] = (1, 8, 64),
    runs: int = 7,
    dtype: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Answer the bundled prompts, greedily, all to the same length, through no, 1, 8, … different compositions in the batch.

    Returns {"machine", "job", "cases", "ratios"}: roadint's time for each number of compositions over the bare model's, and
    pyvene's with one composition for all. Raises RoadError for bad input.
    """
    base, tokenizer = load(model, dtype=dtype)
    base.eval()
    device = next(base.parameters()).device
    layer = len(find_layers(base)[1]) // 2 if layer is None else layer
    road = RoadModel(base, RoadIntervention(layer=layer, subspaces=HALVES))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in road.interventions.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(device))
    prompts = load_prompts("bundled:prompts")
    inputs = batch_prompts(
        tokenizer, "alpaca", [prompts[index % len(prompts)] for index in range(batch_size)]
    )
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    length = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": tokenizer.pad_token_id,
    }

    def through(count: int) -> Callable[[], Any]:
        composed = [
            f"{1 - 0.5 * (index % count) / count:g}*german + english" for index in range(batch_size)
        ]
        return lambda: road.generate(compose=composed, **inputs, **length)  # type: ignore[arg-type]

    systems: dict[tuple[str, str], Callable[[], Any]] = {
        ("untouched", "bare model"): lambda: base.generate(**inputs, **length)
    }
    for count in compositions:
        systems[(_named(count), "roadint")] = through(min(count, batch_size))
    systems[(_named(1), "pyvene")] = _pyvene(base, layer, inputs, length)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in systems}
    peaks = dict.fromkeys(systems, 0.0)
    for index in track(range(runs + 1), runs + 1, "runs", quiet=quiet):
        for key in in_turns(list(systems), index):
            forget_peak(device)
            started = time.perf_counter()
            with torch.no_grad():
                systems[key]()
            wait_for(device)
            if index:  # the first round warms up
                times[key].append(time.perf_counter() - started)
                peaks[key] = max(peaks[key], peak_mb(device))
    cases = [
        case(name, system, times[name, system], peaks[name, system]) for name, system in systems
    ]
    bare = cases[0]["median_s"]
    ours = [each for each in cases if each["system"] == "roadint"]
    ratios = [ratio(each["name"], "bare model", bare, each["median_s"]) for each in ours]
    ratios += [ratio(ours[0]["name"], "pyvene", cases[-1]["median_s"], ours[0]["median_s"])]
    job = {
        "model": model,
        "layer": layer,
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "columns": inputs["input_ids"].shape[1],
    }
    return {"machine": machine(device, base.dtype), "job": job, "cases": cases, "ratios": ratios}


def _named(compositions: int) -> str:
    return "1 composition" if compositions == 1 else f"{compositions} compositions"


def _pyvene(
    base: Any, layer: int, inputs: dict[str, Tensor], length: dict[str, Any]
) -> Callable[[], Any]:
    intervenable, _ = rival.wrapped(base, layer, width_of(base))
    # It froze the model for all systems; on a CPU torch would then copy the head once for every row of a prefill.
    base.requires_grad_(True)
    rows, columns = inputs["input_ids"].shape
    strengths = [torch.ones(width_of(base) // 2)] * rows

    def run() -> Any:
        return intervenable.generate(
            inputs,
            unit_locations={"sources->base": (None, [[[columns - 1]] * rows])},
            subspaces=[strengths],
            intervene_on_prompt=True,
            **length,
        )

    return run
