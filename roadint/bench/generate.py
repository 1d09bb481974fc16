"""`roadint bench generate`: the model's own `generate`, with and without compositions, in turns.

It measures the wall-clock time of answering a batch of bundled prompts greedily, all to the same
length, in one process: by the bare model, through 1, 8, … different compositions in the batch, and
by pyvene through one composition for all rows.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from roadint.architecture.layers import find_layers
from roadint.architecture.properties import width_of
from roadint.bench.halves import HALVES
from roadint.bench.machine import forget_peak, machine, peak_mb
from roadint.bench.pyvene_road import wrap_in_pyvene
from roadint.bench.report import case, ratio
from roadint.bench.shapes import model_and_tokenizer, noise, random_ids
from roadint.bench.timing import seconds_of
from roadint.bench.turns import rounds
from roadint.data.prompts import batch_prompts
from roadint.data.sources import load_prompts
from roadint.interventions.road import RoadIntervention
from roadint.model.road_model import RoadModel

_BARE = ("untouched", "bare model")
_COLUMNS = 64  # of random prompts


def bench_generate(
    model: str,
    *,
    shape: str | None = None,
    layer: int | None = None,
    batch_size: int = 64,
    new_tokens: int = 32,
    compositions: Sequence[int] = (1, 8, 64),
    runs: int = 7,
    dtype: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Time `generate`.

    Args:
        model: Hub id, folder or short name.
        shape: A name in `roadint.bench.shapes.SHAPES`, in place of the model; its prompts are 64
            random tokens.
        layer: From 0; the middle one by default.
        batch_size: Prompts in the batch.
        new_tokens: The length of every answer.
        compositions: Numbers of different compositions in the batch; a case for each number.
        runs: The runs of every system.
        dtype: The dtype of the model.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "cases", "ratios"}: roadint over the bare model for each number of
        compositions, by the median of ratios in the same turn, and over pyvene for the first.

    Raises:
        RoadError: for bad input.
    """
    base, tokenizer = model_and_tokenizer(model, shape, dtype)
    device = next(base.parameters()).device
    layer = len(find_layers(base)[1]) // 2 if layer is None else layer
    road = _random_road(base, layer)
    if shape is None:
        inputs = _bundled(tokenizer, batch_size, device)
    else:
        ids = random_ids(base, batch_size, _COLUMNS)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    length: dict[str, Any] = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": tokenizer.pad_token_id,
    }

    def through(count: int) -> Callable[[], Any]:
        composed = [
            f"{1 - 0.5 * (index % count) / count:g}*german + english" for index in range(batch_size)
        ]
        return lambda: road.generate(compose=composed, **inputs, **length)

    systems: dict[tuple[str, str], Callable[[], Any]] = {
        _BARE: lambda: base.generate(**inputs, **length)  # type: ignore[operator]
    }
    for count in dict.fromkeys(min(each, batch_size) for each in compositions):
        systems[_name_of(count), "roadint"] = through(count)
    systems[_name_of(1), "pyvene"] = _pyvene(base, layer, inputs, length)
    cases = _time(systems, runs, device, quiet)
    ours = [timed for timed in cases if timed["system"] == "roadint"]
    ratios = [ratio(timed["name"], "bare model", 1, timed["over_base"]) for timed in ours]
    ratios += [ratio(ours[0]["name"], "pyvene", cases[-1]["median_s"], ours[0]["median_s"])]
    job = {
        "model": shape or model,
        "layer": layer,
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "columns": inputs["input_ids"].shape[1],
    }
    return {"machine": machine(device, base.dtype), "job": job, "cases": cases, "ratios": ratios}


def _bundled(
    tokenizer: PreTrainedTokenizerBase, count: int, device: torch.device
) -> dict[str, Any]:
    bundled = load_prompts("bundled:prompts")
    prompts = [bundled[index % len(bundled)] for index in range(count)]
    batch = batch_prompts(tokenizer, "alpaca", prompts)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _random_road(base: PreTrainedModel, layer: int) -> RoadModel:
    road = RoadModel(base, RoadIntervention(layer=layer, subspaces=HALVES))
    with torch.no_grad():
        for seed, parameter in enumerate(road.interventions.parameters()):
            parameter.add_(0.1 * noise(*parameter.shape, like=parameter, seed=seed))
    return road


def _time(
    systems: dict[tuple[str, str], Callable[[], Any]], runs: int, device: torch.device, quiet: bool
) -> list[dict[str, Any]]:
    """The cases of systems, by (case, system) → what is timed."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in systems}
    peaks = dict.fromkeys(systems, 0.0)
    for number, key in rounds(list(systems), runs, "runs", quiet=quiet):
        forget_peak(device)
        with torch.no_grad():
            seconds = seconds_of(systems[key], device)
        if number:
            times[key].append(seconds)
            peaks[key] = max(peaks[key], peak_mb(device))
    bare = times[_BARE]
    return [
        case(
            *key,
            times[key],
            peaks[key],
            over_base=round(median(a / b for a, b in zip(times[key], bare, strict=True)), 4),
        )
        for key in systems
    ]


def _name_of(compositions: int) -> str:
    return "1 composition" if compositions == 1 else f"{compositions} compositions"


def _pyvene(
    base: PreTrainedModel, layer: int, inputs: dict[str, Tensor], length: dict[str, Any]
) -> Callable[[], Any]:
    width = width_of(base)
    intervenable, _ = wrap_in_pyvene(base, layer, width)
    # pyvene has frozen the model for all systems, and then torch copies the head for every row on a
    # CPU.
    base.requires_grad_(True)
    rows, columns = inputs["input_ids"].shape
    return lambda: intervenable.generate(
        inputs,
        unit_locations={"sources->base": (None, [[[columns - 1]] * rows])},
        subspaces=[[torch.ones(width // 2)] * rows],
        intervene_on_prompt=True,
        **length,
    )
