"""Steps of `generate`, as users call it: of a compiled RoadModel, and of the bare model.

On a GPU both have a static cache and CUDA graphs: the RoadModel by `RoadModel.compile`, the bare
model by transformers, which compiles the decode of a static cache. On a CPU neither is compiled.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from roadint.adapters.targets import find_targets
from roadint.bench.linear_systems import random_adapter
from roadint.bench.shapes import random_ids, twin
from roadint.bench.timing import BASE
from roadint.model.road_model import RoadModel


@dataclass(frozen=True)
class Generation:
    """A way to generate.

    Attributes:
        name: As reports have it.
        generate: Takes the arguments of transformers' `generate`.
    """

    name: str
    generate: Callable[..., Any]


class _Clock(BaseStreamer):
    """Notes when tokens are there: they come to the host, so the device has made them."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def generations(base: PreTrainedModel, rows: int) -> list[Generation]:
    """The bare model, and a RoadModel in which every row has an adapter of its own.

    Args:
        base: The bare model.
        rows: How many rows.

    Returns:
        Both.
    """
    on_gpu = base.device.type == "cuda"
    if on_gpu:
        torch.compiler.reset()  # else a second number of rows would be compiled for any number
    static = {"cache_implementation": "static"} if on_gpu else {}
    bare: Any = base
    found = [Generation(BASE, partial(bare.generate, **static))]
    # A twin: what compiling does to modules is not done to the bare model's.
    road = RoadModel(twin(base))
    layout = find_targets(base)
    road.attach([random_adapter(f"a{number}", layout, number) for number in range(rows)])
    if on_gpu:
        road.compile()
    compose = [f"a{number}" for number in range(rows)]
    name = f"roadint, {rows} adapters"
    return [*found, Generation(name, partial(road.generate, compose=compose))]


def generation_steps(
    base: PreTrainedModel, rows: int, length: int, count: int
) -> Callable[[Generation], float]:
    """A function that returns the median time of a step of `generate`, in seconds.

    Args:
        base: The bare model.
        rows: How many rows.
        length: The tokens of the prompts.
        count: How many steps.
    """
    ids = random_ids(base, rows, length)
    arguments = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": count + 1,
        "min_new_tokens": count + 1,
        "do_sample": False,
        "pad_token_id": 0,
    }

    def once(system: Generation) -> float:
        clock = _Clock()
        system.generate(input_ids=ids, streamer=clock, **arguments)
        # The first note is the prompt's, the second that of the pass over it.
        return median(later - earlier for earlier, later in pairwise(clock.times[1:]))

    return once
