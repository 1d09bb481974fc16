"""`roadint bench learn`: RoAd1/2/4 and PEFT's LoRA and (IA)³ on one task, over many seeds.

It measures the task's metric on test rows, after the epoch with the best validation, for the same
rows, steps and schedule. A case has the mean and the sample standard deviation over seeds.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import set_seed

from roadint.bench.learn_systems import PeftMethod
from roadint.bench.machine import machine
from roadint.errors import check_known
from roadint.progress import track
from roadint.recipes.recipe import Recipe
from roadint.tasks.registry import task_of
from roadint.tasks.run import fit, load_for
from roadint.tasks.task import Task, measure

# Learning rates of the methods: RoAd's is of the paper's range (C.1), LoRA's the usual one.
RATES = {"road_1": 5e-3, "road_2": 5e-3, "road_4": 5e-3, "lora": 5e-4, "ia3": 1e-2, "head": 5e-3}


def bench_learn(
    recipe: Recipe,
    data: Mapping[str, str],
    *,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2, 3),
    rates: Mapping[str, float] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Finetune by every method with every seed, and measure the best epoch on the test rows.

    Args:
        recipe: A recipe of a task.
        data: The task's files, in place of the recipe's.
        methods: Names in RATES; all but "head" (the head alone) by default.
        seeds: The seeds of heads, adapters and the order of rows.
        rates: Learning rates by method, in place of those in RATES.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "runs", "cases"}, one case a method; "base" is the untrained language
        model.

    Raises:
        RoadError: for bad input.
    """
    chosen = list(methods) or [name for name in RATES if name != "head"]
    for name in [*chosen, *(rates or {})]:
        check_known("method", name, RATES)
    task = task_of(recipe, data)
    todo = [(seed, name) for seed in seeds for name in chosen]
    runs = []
    for seed, name in track(todo, len(todo), "runs", quiet=quiet):
        rate = (rates or {}).get(name, RATES[name])
        figures, used = _finetune(name, recipe.override({"seed": seed, "lr": rate}), task)
        runs.append({"method": name, "seed": seed, "lr": rate, **figures})
    cases = [_case(name, [run for run in runs if run["method"] == name]) for name in chosen]
    if task.labels is None:
        model, tokenizer = load_for(task, recipe)
        untouched = measure(task, PeftMethod(model, "base", recipe), tokenizer)
        cases.insert(0, {"method": "base", "numbers": 0, **untouched})
    about = {
        "task": recipe.task.name,
        "model": recipe.model.name,
        "metric": task.metric,
        "rows": task.sizes(),
        "epochs": recipe.optimisation.epochs,
    }
    return {
        "machine": machine(*used),
        "job": about,
        "runs": runs,
        "cases": cases,
    }


def _finetune(
    method: str, recipe: Recipe, task: Task
) -> tuple[dict[str, Any], tuple[torch.device, torch.dtype]]:
    """The figures of one run, and the device and the dtype of the model."""
    set_seed(recipe.optimisation.seed)  # the new head is the same for all methods
    model, tokenizer = load_for(task, recipe)
    model.requires_grad_(False)
    if method.startswith("road"):
        system: Any = recipe.override({"variant": method}).on(model)
        heads = [head for adapter in system.adapters.values() for head in adapter.heads]
    else:
        system = PeftMethod(model, method, recipe)
        heads = [model.get_submodule(path) for path in recipe.edit.heads]
    size = sum(parameter.numel() for head in heads for parameter in head.parameters())
    used = next(model.parameters()).device, model.dtype
    return {**fit(system, tokenizer, task, recipe), "head": size}, used


def _case(method: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tests = [run["test"] for run in runs]
    several = {
        name: round(statistics.mean(run["tests"][name] for run in runs), 4)
        for name in runs[0].get("tests", {})
    }
    return {
        "method": method,
        "lr": runs[0]["lr"],
        "numbers": runs[0]["trainable"] - runs[0]["head"],
        "head": runs[0]["head"],
        "test": round(statistics.mean(tests), 4),
        **({"tests": several} if several else {}),
        "sd": round(statistics.stdev(tests), 4) if len(tests) > 1 else None,
        "validation": round(statistics.mean(max(run["validation"]) for run in runs), 4),
        "seconds": round(statistics.mean(run["seconds"] for run in runs), 1),
    }
