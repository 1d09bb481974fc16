"""One-token steps of a model at one length of its cache: eager, or replayed as a CUDA graph."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, StaticCache

from roadint.architecture.properties import cache_name, input_device
from roadint.bench.linear_systems import LinearSystem
from roadint.bench.machine import free_memory
from roadint.bench.shapes import random_ids
from roadint.bench.timing import seconds_of
from roadint.errors import RoadError

Mode = Literal["eager", "graph", "generate"]
MODES: tuple[Mode, ...] = ("eager", "graph")
Steps = Callable[[LinearSystem], float]
"""A system → the seconds of a step."""

_LIMIT = 1.0  # seconds, after which a slow system makes no further steps in a run
_WARM_UP = 3  # steps before a graph is captured


def modes_on(device: torch.device, wanted: Sequence[Mode] = MODES) -> list[Mode]:
    """The modes that a device has: graphs captured by hand are CUDA's.

    Args:
        device: The device.
        wanted: Modes.

    Returns:
        Those of `wanted` that the device has.

    Raises:
        RoadError: where it has none of them.
    """
    modes = [mode for mode in wanted if mode != "graph" or device.type == "cuda"]
    if not modes:
        raise RoadError(f"mode graph needs a GPU, and this is {device}: expected mode eager")
    return modes


@contextmanager
def steps_of(
    mode: Mode, base: PreTrainedModel, rows: int, length: int, count: int
) -> Iterator[Steps]:
    """Steps of a mode, whose memory is free again after the context.

    Args:
        mode: "eager" or "graph".
        base: The bare model.
        rows: How many rows a step has.
        length: How many tokens the cache holds: before the first step where it grows ("eager"); in
            all, and attention reads all of them, where it has a fixed size ("graph").
        count: How many steps a run has.

    Yields:
        A system → the seconds of a step.
    """
    if mode == "eager":
        yield EagerSteps(base, rows, length, count)
        return
    graphs = GraphSteps(base, rows, length, count)
    try:
        yield graphs
    finally:
        graphs.close()


class EagerSteps:
    """Steps as `generate` makes them, with a cache that grows.

    Args:
        base: The bare model, which fills the cache.
        rows: How many rows a step has.
        length: How many tokens the cache holds before the first step.
        count: The steps of a run; a slow system makes fewer.
    """

    def __init__(self, base: PreTrainedModel, rows: int, length: int, count: int) -> None:
        self._ids, self._name, self._count = random_ids(base, rows, length), cache_name(base), count
        self._device = self._ids.device
        output = base(input_ids=self._ids, use_cache=True, logits_to_keep=1)
        self._cache = getattr(output, self._name)

    def __call__(self, system: LinearSystem) -> float:
        """The median time of a step, in seconds; every run starts with the same cache."""
        inputs = {
            "input_ids": self._ids[:, :1],
            "use_cache": True,
            self._name: copy.deepcopy(self._cache),
        }
        times: list[float] = []
        with system.context(()) as module:
            while len(times) < self._count and sum(times) < _LIMIT:
                step = partial(module, **inputs, **system.keywords(()))
                times.append(seconds_of(step, self._device))
        return median(times)


class GraphSteps:
    """Steps replayed as CUDA graphs, with a static cache, which all systems share.

    Args:
        base: The bare model: a LLaMA, whose layers all attend to the whole cache.
        rows: How many rows a step has.
        length: The length of the cache, all of which attention reads.
        count: The steps of a run, at most `length`.
    """

    def __init__(self, base: PreTrainedModel, rows: int, length: int, count: int) -> None:
        self._device = input_device(base)
        self._count = min(count, length)
        self._cache = StaticCache(config=base.config, max_cache_len=length)
        self._inputs = {
            "input_ids": random_ids(base, rows, 1),
            "position_ids": torch.full((1, 1), length - 1, device=self._device),
            "attention_mask": torch.ones(rows, 1, 1, length, dtype=torch.bool, device=self._device),
            "use_cache": True,
            cache_name(base): self._cache,
        }
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self._held = ExitStack()

    def __call__(self, system: LinearSystem) -> float:
        """The mean time of a step, in seconds; a system's first run captures its graph."""
        if system.name not in self._graphs:
            self._graphs[system.name] = self._captured(system)
        graph = self._graphs[system.name]
        self.rewind()

        def replay() -> None:
            for _ in range(self._count):
                graph.replay()

        return seconds_of(replay, self._device) / self._count

    def close(self) -> None:
        """Give graphs, caches and what systems held for them back."""
        self._graphs.clear()
        self._inputs.clear()
        self._held.close()
        del self._cache
        free_memory(self._device)

    def step(self, system: LinearSystem) -> Callable[[], Any]:
        """What a graph captures: a step, whose inputs and outputs stay where they are in memory."""
        module = self._held.enter_context(system.context(()))
        return partial(module, **self._inputs, **system.keywords(()))

    def rewind(self) -> None:
        """Let the cache take its first tokens again: a step past its end would write outside."""
        for layer in self._cache.layers:
            count: Any = getattr(layer, "cumulative_length", None)
            if torch.is_tensor(count):
                count.zero_()

    def _captured(self, system: LinearSystem) -> torch.cuda.CUDAGraph:
        step = self.step(system)
        self.rewind()
        beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                step()
        torch.cuda.current_stream(self._device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph
