"""`roadint bench learn`: RoAd1/2/4 beside PEFT's LoRA and (IA)³ on one task, same rows, steps and schedule, several seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from roadint.adapters.targets import find_targets
from roadint.bench.measure import machine
from roadint.engines.transformers.scoring import score
from roadint.errors import RoadError, check_known
from roadint.progress import track
from roadint.recipes.recipe import Recipe
from roadint.tasks.run import fit, load_for
from roadint.tasks.table import task_of
from roadint.tasks.task import Task

# The learning rate of each method, unless the call gives another: RoAd's is of the paper's range (C.1), LoRA's the usual one.
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
    """Finetune by every method with every seed and measure the best epoch on the test rows.

    methods: of RATES, all but "head" (the head alone) by default. rates: learning rates in place of RATES'.
    Returns {"machine", "job", "runs", "cases"}; a case has the mean and the sample standard deviation of a method's test metric;
    "base" is the language model as it is.
    Raises RoadError for bad input.
    """
    chosen = list(methods) or [name for name in RATES if name != "head"]
    for name in [*chosen, *(rates or {})]:
        check_known("method", name, RATES)
    job = task_of(recipe, data)
    runs = []
    todo = [(seed, name) for seed in seeds for name in chosen]
    for seed, name in track(todo, len(todo), "runs", quiet=quiet):
        settings = recipe.override({"seed": seed, "lr": (rates or {}).get(name, RATES[name])})
        runs.append(
            {
                "method": name,
                "seed": seed,
                "lr": settings.optimisation.lr,
                **_one(name, settings, job),
            }
        )
    cases = []
    for name in chosen:
        own = [run for run in runs if run["method"] == name]
        tests = [run["test"] for run in own]
        cases.append(
            {
                "method": name,
                "lr": own[0]["lr"],
                "numbers": own[0]["trainable"] - own[0]["head"],
                "head": own[0]["head"],
                "test": round(statistics.mean(tests), 4),
                "sd": round(statistics.stdev(tests), 4) if len(tests) > 1 else None,
                "validation": round(statistics.mean(max(run["validation"]) for run in own), 4),
                "seconds": round(statistics.mean(run["seconds"] for run in own), 1),
            }
        )
    about = {
        "task": recipe.task.name,
        "model": recipe.model.name,
        "metric": job.metric,
        "rows": job.sizes(),
        "epochs": recipe.optimisation.epochs,
    }
    if job.labels is None:
        model, tokenizer = load_for(job, recipe)
        before = job.score(_Rival(model, "base", recipe), tokenizer, "test")
        cases.insert(0, {"method": "base", "numbers": 0, "test": round(before, 4)})
    dtype = torch.float32 if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    return {
        "machine": machine(torch.device("cpu"), dtype),
        "job": about,
        "runs": runs,
        "cases": cases,
    }


def _one(method: str, recipe: Recipe, job: Task) -> dict[str, Any]:
    set_seed(recipe.optimisation.seed)  # the new head is the same for all methods
    model, tokenizer = load_for(job, recipe)
    model.requires_grad_(False)
    if method.startswith("road"):
        system: Any = recipe.override({"variant": method}).on(model)
        heads = [
            each for adapter in system.adapters.values() for each in adapter.heads.parameters()
        ]
    else:
        system = _Rival(model, method, recipe)
        heads = [
            each for path in recipe.edit.heads for each in model.get_submodule(path).parameters()
        ]
    return {**fit(system, tokenizer, job, recipe), "head": sum(each.numel() for each in heads)}


class _Rival(nn.Module):
    """PEFT's layers in a model, called as a RoadModel is."""

    def __init__(self, model: nn.Module, method: str, recipe: Recipe) -> None:
        super().__init__()
        self.model = model.eval()
        paths = list(
            find_targets(model, recipe.edit.targets, recipe.edit.exclude, recipe.edit.layers).paths
        )
        if method not in ("base", "head"):
            peft = import_peft()
            config = (
                peft.LoraConfig(r=8, lora_alpha=16, target_modules=paths)
                if method == "lora"
                else peft.IA3Config(target_modules=paths, feedforward_modules=[])
            )
            peft.inject_adapter_in_model(config, model)
        for path in recipe.edit.heads:
            model.get_submodule(path).requires_grad_()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(
        self, *, _scored: Any = None, compose: Any = None, prompt_length: Any = None, **inputs: Any
    ) -> Any:
        return (
            self.model(**inputs)
            if _scored is None
            else score(self.model, inputs, *_scored, plain=self.model)
        )

    def train(self, mode: bool = True) -> "_Rival":
        self.training = mode  # as in a RoadModel, what is frozen does not drop out
        return self

    def generate(self, **inputs: Any) -> Any:
        return self.model.generate(**inputs)  # type: ignore[operator]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        asking = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {
            name: value
            for name, value in super().state_dict(*args, **kwargs).items()
            if name in asking
        }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        return type(result)([], result.unexpected_keys)


def import_peft() -> Any:
    """PEFT, an extra. Raises RoadError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise RoadError(f"PEFT is not installed ({error}): pip install 'roadint[peft]'") from None
    return peft
