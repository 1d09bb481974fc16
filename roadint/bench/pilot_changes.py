"""The first pilot study of `roadint bench pilot`: how finetuning changes hidden states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import set_seed

from roadint.bench.learn_methods import RATES as LEARN_RATES
from roadint.bench.learn_methods import Method
from roadint.bench.learn_systems import system_of
from roadint.inspection.pilot import direction_change, magnitude_change
from roadint.inspection.states import hidden_states
from roadint.progress import track
from roadint.recipes.recipe import Recipe
from roadint.tasks.classification import ClassificationTask
from roadint.tasks.run import fit, load_for

RATES = {"full": 1e-4, "lora": LEARN_RATES["lora"], "road_1": LEARN_RATES["road_1"]}
"""Methods of finetuning, and their learning rates."""

NAMES = {"full": "full finetuning", "lora": "LoRA r=8", "road_1": "RoAd1"}
_POINTS = 150  # of a case, for the picture


@dataclass(frozen=True)
class Changes:
    """What finetuning did to hidden states.

    Attributes:
        magnitude: ΔM.
        direction: ΔD, a cosine.
        by_chance: ΔM of moves that are as long, but go in random directions.
    """

    magnitude: Float[Tensor, "layers rows"]
    direction: Float[Tensor, "layers rows"]
    by_chance: Float[Tensor, "layers rows"]


def changes(
    before: Float[Tensor, "layers rows width"], after: Float[Tensor, "layers rows width"]
) -> Changes:
    """Compare hidden states before and after.

    Args:
        before: x0.
        after: x.
    """
    length = (after - before).norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    anywhere = normalize(torch.randn(before.shape, generator=generator), dim=-1)
    return Changes(
        magnitude_change(before, after),
        direction_change(before, after).clamp(-1, 1),
        magnitude_change(before, before + length * anywhere),
    )


def study_changes(
    task: ClassificationTask,
    recipe: Recipe,
    methods: Sequence[str],
    seeds: Sequence[int],
    rates: Mapping[str, float],
    *,
    quiet: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Finetune by every method with every seed, and compare the states of all dev rows.

    Args:
        task: The task.
        recipe: The recipe, with the model and the optimisation.
        methods: Names in RATES.
        seeds: The seeds of heads, adapters and the order of rows.
        rates: The learning rate of each method.
        quiet: Whether there is no progress bar.

    Returns:
        The runs, with their scores; and the cases, one for each method and layer.
    """
    runs: list[dict[str, Any]] = []
    measured: dict[str, list[Changes]] = {method: [] for method in methods}
    todo = [(seed, method) for seed in seeds for method in methods]
    for seed, method in track(todo, len(todo), "study 1", quiet=quiet):
        tuned = recipe.override({"seed": seed, "lr": rates[method]})
        figures, change = _finetune(method, tuned, task)
        runs.append({"study": 1, "method": method, "seed": seed, "lr": rates[method], **figures})
        measured[method].append(change)
    return runs, [case for method in methods for case in _cases(method, measured[method])]


def _finetune(
    method: str, recipe: Recipe, task: ClassificationTask
) -> tuple[dict[str, Any], Changes]:
    set_seed(recipe.optimisation.seed)
    model, tokenizer = load_for(task, recipe)
    splits = [split for split in task.splits if split != "train"]
    dev = [row for split in splits for row in task.encoded(tokenizer, split)]
    before = hidden_states(model, tokenizer, dev, token="first")
    system, _ = system_of(Method.named(method), model, recipe)
    figures = fit(system, tokenizer, task, recipe)
    kept = ("validation", "test", "steps", "seconds", "trainable")
    after = hidden_states(system, tokenizer, dev, token="first")
    return {name: figures[name] for name in kept}, changes(before, after)


def _cases(method: str, seeds: Sequence[Changes]) -> list[dict[str, Any]]:
    """The cases of a method, whose rows are those of all seeds together."""
    magnitudes, directions, chances = (
        torch.cat([pick(change) for change in seeds], dim=1).double().numpy() for pick in _PICKS
    )
    layers = zip(magnitudes, directions, chances, strict=True)
    return [{"study": 1, "method": method, "layer": i, **_case(*e)} for i, e in enumerate(layers)]


_PICKS: tuple[Callable[[Changes], Tensor], ...] = (
    lambda change: change.magnitude,
    lambda change: change.direction,
    lambda change: change.by_chance,
)


def _case(magnitude: np.ndarray, direction: np.ndarray, by_chance: np.ndarray) -> dict[str, Any]:
    turned = 1 - direction
    moved = np.sqrt(2 * turned)  # what a turn alone moves a state by, over its size: ΔM's unit
    varies = magnitude.std() > 0 and turned.std() > 0
    chosen = np.linspace(0, len(magnitude) - 1, min(_POINTS, len(magnitude))).astype(int)
    numbers = {
        "magnitude": magnitude.mean(),
        "magnitude_sd": magnitude.std(),
        "direction": direction.mean(),
        "direction_sd": direction.std(),
        "turn": moved.mean(),
        "magnitude_by_chance": by_chance.mean(),
        "rows_direction_larger": (turned > magnitude).mean(),
        "rows_turn_larger": (moved > magnitude).mean(),
    }
    return {
        "rows": len(magnitude),
        **{name: _rounded(value) for name, value in numbers.items()},
        "correlation": round(float(np.corrcoef(magnitude, turned)[0, 1]), 3) if varies else None,
        "points": [[_rounded(magnitude[i]), _rounded(direction[i])] for i in chosen],
    }


def _rounded(value: float) -> float:
    return round(float(value), 7)  # as exact as a cosine in float32 is


def claims(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the paper says of figures 2 and B.1, and in which layers it is so.

    Args:
        cases: As `study_changes` returns them.

    Returns:
        For each claim its text, the layers where it holds, and all layers. The first is the
        paper's own comparison of its two numbers, 1 − ΔD > ΔM. The second is the same in one unit:
        a turn moves a state by √(2(1 − ΔD)) of its size, a change of size by ΔM.
    """
    of = {(case["method"], case["layer"]): case for case in cases}
    layers = sorted({case["layer"] for case in cases})
    methods = list(dict.fromkeys(case["method"] for case in cases))
    found = []
    for method in methods:
        chosen = [of[method, layer] for layer in layers]
        tests: dict[str, list[bool]] = {
            "1 − ΔD is above ΔM": [1 - c["direction"] > c["magnitude"] for c in chosen],
            "a turn moves more than a change of size": [c["turn"] > c["magnitude"] for c in chosen],
            "1 − ΔD grows with ΔM": [(c["correlation"] or 0) > 0 for c in chosen],
            "size changes less than by a random move of that length": [
                c["magnitude"] < c["magnitude_by_chance"] for c in chosen
            ],
        }
        found += [_claim(f"{NAMES[method]}: {text}", layers, so) for text, so in tests.items()]
    if {"full", "lora"} <= set(methods):
        more = [
            of["full", i]["magnitude"] > of["lora", i]["magnitude"]
            and of["full", i]["direction"] < of["lora", i]["direction"]
            for i in layers
        ]
        found.append(_claim("full finetuning changes both more than LoRA r=8", layers, more))
    return found


def _claim(text: str, layers: Sequence[int], so: Sequence[bool]) -> dict[str, Any]:
    holds = [layer for layer, held in zip(layers, so, strict=True) if held]
    return {"study": 1, "claim": text, "layers": holds, "of": list(layers)}
