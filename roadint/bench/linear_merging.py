"""The time of merging and unmerging adapters, in `roadint bench linear`."""

import time
from collections.abc import Callable
from typing import Any

from torch import nn

from roadint.adapters.merging import Merged, merge
from roadint.adapters.targets import layout_of
from roadint.bench.linear_systems import peft_road_system, random_adapter
from roadint.bench.report import case
from roadint.bench.turns import rounds
from roadint.grammar.composition import Composition

_WIDTH = 2048


def merging_cases(runs: int) -> list[dict[str, Any]]:
    """Time merging and unmerging, of a layer alone and in a stack of eight.

    Args:
        runs: The runs of every system.

    Returns:
        Cases "merge" and "unmerge"; seconds are a layer's.
    """
    return [*_merge_stack(1, runs), *_merge_stack(8, runs)]


def _merge_stack(layers: int, runs: int) -> list[dict[str, Any]]:
    net = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(layers)))
    paths = [str(index) for index in range(layers)]
    adapters = {"a0": random_adapter("a0", layout_of(net, paths))}
    composition = Composition((("a0", 1.0),))
    peft: Any = peft_road_system(net, paths, 1).module
    merged: list[Merged] = []

    def enter(keep: bool) -> None:
        merged.append(merge(net, adapters, composition, keep))

    def leave() -> None:
        merged.pop().undo()

    systems: dict[str, dict[str, Callable[[], Any]]] = {
        "roadint": {"merge": lambda: enter(False), "unmerge": leave},
        "roadint, weights kept": {"merge": lambda: enter(True), "unmerge": leave},
        "PEFT RoAd": {"merge": peft.merge_adapter, "unmerge": peft.unmerge_adapter},
    }
    times: dict[tuple[str, str], list[float]] = {}
    for number, system in rounds(list(systems), runs, "merging", quiet=True):
        for name, act in systems[system].items():
            started = time.perf_counter()
            act()
            seconds = (time.perf_counter() - started) / layers
            if number:
                times.setdefault((name, system), []).append(seconds)
    about: dict[str, Any] = {"width": _WIDTH, "dtype": "float32", "layers": layers}
    return [case(*key, seconds_of_runs, None, **about) for key, seconds_of_runs in times.items()]
