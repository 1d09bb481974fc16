"""The time of merging and unmerging adapters, in `roadint bench linear`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from roadint.adapters.merging import Merged, merge
from roadint.adapters.targets import layout_of
from roadint.bench.linear_systems import peft_road_system, random_adapter
from roadint.bench.machine import default_device
from roadint.bench.report import case
from roadint.bench.shapes import noise
from roadint.bench.timing import seconds_of
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


def whole_model_cases(
    model: nn.Module, paths: Sequence[str], runs: int, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Time merging and unmerging, of all linear layers of a model.

    Args:
        model: The model. Its weights are changed and changed back, up to rounding.
        paths: The paths of its linear layers.
        runs: The runs of every system.
        about: Further entries of every case.

    Returns:
        Cases "merge" and "unmerge"; seconds are the whole model's.
    """
    times = _take_turns(model, paths, runs)
    more = {"layers": len(paths), **about}
    return [case(*key, seconds, None, **more) for key, seconds in times.items()]


def _merge_stack(layers: int, runs: int) -> list[dict[str, Any]]:
    net = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(layers))).requires_grad_(False)
    net.to(default_device())
    for seed, parameter in enumerate(net.parameters()):
        parameter.copy_(noise(*parameter.shape, like=parameter, seed=seed) / _WIDTH**0.5)
    times = _take_turns(net, [str(index) for index in range(layers)], runs)
    about: dict[str, Any] = {"width": _WIDTH, "dtype": "float32", "layers": layers}
    return [
        case(*key, [value / layers for value in seconds], None, **about)
        for key, seconds in times.items()
    ]


def _take_turns(
    net: nn.Module, paths: Sequence[str], runs: int
) -> dict[tuple[str, str], list[float]]:
    """The seconds of every run, by case and system."""
    device = next(net.parameters()).device
    adapters = {"a0": random_adapter("a0", layout_of(net, paths)).to(device)}
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
    with torch.no_grad():
        for number, system in rounds(list(systems), runs, "merging", quiet=True):
            for name, act in systems[system].items():
                seconds = seconds_of(act, device)
                if number:
                    times.setdefault((name, system), []).append(seconds)
    return times
