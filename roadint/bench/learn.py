"""`roadint bench learn`: RoAd1/2/4 and the methods beside it on one task, over many seeds.

It measures the task's metric on test rows, after the epoch with the best validation, for the same
rows, steps and schedule. A case has the mean and the sample standard deviation over seeds. Rates
are chosen as in the paper (appendix C.1): all are tried with the first seed, the best by
validation is every seed's.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import set_seed

from roadint.bench.jobs import differing
from roadint.bench.learn_methods import Method, methods_named, nearness, rates_of
from roadint.bench.learn_systems import OtherMethod, biases, system_of
from roadint.bench.machine import machine
from roadint.errors import RoadError, check_known, quoted
from roadint.files.plain_json import plain
from roadint.progress import track
from roadint.recipes.recipe import Recipe
from roadint.tasks.registry import task_of
from roadint.tasks.run import fit, load_for
from roadint.tasks.task import Task, measure

Run = dict[str, Any]
_VARIED = {"edit": ("variant", "lora_rank", "lora_alpha"), "optimisation": ("lr", "seed")}


def bench_learn(
    recipe: Recipe,
    data: Mapping[str, str],
    *,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2, 3),
    rates: Mapping[str, float] | None = None,
    tries: int = 1,
    kept: Mapping[str, Any] | None = None,
    done: Callable[[dict[str, Any]], None] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Finetune by every method with every seed, and measure the best epoch on the test rows.

    Args:
        recipe: A recipe of a task.
        data: The task's files, in place of the recipe's.
        methods: Names, see `Method`; DEFAULTS by default.
        seeds: The seeds of heads, adapters, the order of rows and the split of a dev set.
        rates: Learning rates by method, which are tried alone.
        tries: How many rates every other method tries with the first seed, see `rates_of`.
        kept: A report of the same job, whose runs are not repeated.
        done: Called after every run with the report so far.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "runs", "cases"}, one case a method; "base" is the untrained language
        model. With several tries, a case has "tries", the best validation score by rate or what
        failed there, and "edge": whether its rate is the least or the largest of them, so that
        another might be better.

    Raises:
        RoadError: for bad input.
    """
    bench = _Bench(recipe, data, methods, seeds, rates or {}, tries)
    bench.check()
    if kept is not None:
        bench.take(kept)
    todo = bench.todo()
    for method, rate, seed in track(todo, len(todo), "runs", quiet=quiet):
        if bench.run(method, rate, seed) and done is not None:
            done(bench.report())
    return bench.report()


class _Bench:
    """The runs of one job, those that are done and those that are not."""

    def __init__(
        self,
        recipe: Recipe,
        data: Mapping[str, str],
        methods: Sequence[str],
        seeds: Sequence[int],
        rates: Mapping[str, float],
        tries: int,
    ) -> None:
        self.methods, self.seeds = methods_named(methods), list(dict.fromkeys(seeds))
        for name in rates:
            check_known("method with a rate", name, [method.name for method in self.methods])
        self.rates = {method: rates_of(method, tries, rates) for method in self.methods}
        if recipe.edit.lora_rank:
            raise RoadError(
                f"recipe setting lora_rank={recipe.edit.lora_rank}: methods have ranks of their "
                f"own; expected method 'road_1+lora_{recipe.edit.lora_rank}'"
            )
        self.recipe, self.data = recipe, data
        self._tasks: dict[int, Task] = {}
        self.task = self._task(self.seeds[0])
        self.job = self._job(tries)
        self.runs: list[Run] = []
        self.base: Run | None = None
        self.machine: dict[str, Any] | None = None

    def check(self) -> None:
        """Refuse, before hours of runs, a method that this model can't have."""
        if any(method.family == "bitfit" for method in self.methods):
            biases(load_for(self.task, self.recipe)[0])

    def take(self, kept: Mapping[str, Any]) -> None:
        """Take the runs of a report of the same job; those that failed are not taken.

        Raises:
            RoadError: where the report is of another job.
        """
        try:
            theirs = {name: kept["job"][name] for name in self.job}
            runs, cases = list(kept["runs"]), list(kept["cases"])
            self.runs = [run for run in runs if "error" not in run]
            for run in self.runs:
                str(run["method"]), run["lr"], run["seed"], run["validation"], run["test"]
        except (KeyError, TypeError, IndexError):
            raise RoadError("the report to resume is none of bench learn that can resume") from None
        different = [name for name in differing(self.job, theirs) if name != "tries"]
        if different:
            name = different[0]
            raise RoadError(
                f"the report to resume is of another job, with {name} {quoted(theirs[name])} in "
                f"place of {quoted(self.job[name])}: expected the same command, or another file"
            )
        self.base = next((case for case in cases if case["method"] == "base"), None)
        self.machine = kept.get("machine")

    def todo(self) -> list[tuple[Method, float | None, int]]:
        """Methods, rates and seeds in order; the rate is None where it is chosen on the way."""
        first, *others = self.seeds
        tried = [(method, rate, first) for method in self.methods for rate in self.rates[method]]
        return [*tried, *((method, None, seed) for seed in others for method in self.methods)]

    def run(self, method: Method, rate: float | None, seed: int) -> bool:
        """Do one run; returns whether it was not done before.

        Raises:
            RoadError: where it fails, and is no try among several that may do better.
        """
        tried = rate is not None and len(self.rates[method]) > 1
        rate = self.chosen(method) if rate is None else rate
        if self._find(method, rate, seed) is not None:
            return False
        run: Run = {"method": method.name, "seed": seed, "lr": rate}
        task = self._task(seed)
        self._measure_base(task)
        try:
            figures, used = _finetune(
                method, self.recipe.override({"seed": seed, "lr": rate}), task
            )
        except RoadError as error:
            if not tried:
                raise
            self.runs.append({**run, "error": str(error)})
            return True
        self.machine = self.machine or machine(*used)
        self.runs.append({**run, **plain(figures)})
        return True

    def chosen(self, method: Method) -> float:
        """The rate with the best validation; of equal ones, the nearest to the family's own.

        Raises:
            RoadError: where all of them failed.
        """
        tries = {rate: self._find(method, rate, self.seeds[0]) for rate in self.rates[method]}
        scores = {
            rate: max(run["validation"])
            for rate, run in tries.items()
            if run and "error" not in run
        }
        if not scores:
            told = next(run["error"] for run in tries.values() if run)
            raise RoadError(f"method {method.name!r} fails at every rate that was tried: {told}")
        return max(scores, key=lambda rate: (scores[rate], nearness(method, rate)))

    def report(self) -> dict[str, Any]:
        """All that is done."""
        first = self.seeds[0]
        ready = [
            method
            for method in self.methods
            if all(self._find(method, rate, first) for rate in self.rates[method])
        ]
        cases = [] if self.base is None else [self.base]
        cases += [self._case(method) for method in ready]
        return {"machine": self.machine, "job": self.job, "runs": self.runs, "cases": cases}

    def _case(self, method: Method) -> dict[str, Any]:
        rate = self.chosen(method)
        found = [self._find(method, rate, seed) for seed in self.seeds]
        rated = self.rates[method]
        made = _case(method, [run for run in found if run is not None])
        if len(rated) == 1:
            return made
        tries = [
            {"lr": each, **_told(self._find(method, each, self.seeds[0]) or {})} for each in rated
        ]
        return {**made, "tries": tries, "edge": rate in (rated[0], rated[-1])}

    def _find(self, method: Method, rate: float, seed: int) -> Run | None:
        wanted = {"method": method.name, "lr": rate, "seed": seed}
        return next((run for run in self.runs if wanted.items() <= run.items()), None)

    def _task(self, seed: int) -> Task:
        """The task of a seed, which splits its dev set; its data are read once."""
        if seed not in self._tasks:
            self._tasks[seed] = task_of(self.recipe.override({"seed": seed}), self.data)
        return self._tasks[seed]

    def _measure_base(self, task: Task) -> None:
        """Measure the untrained model, where it can do the task."""
        if task.labels is not None or self.base is not None:
            return
        model, tokenizer = load_for(task, self.recipe)
        untouched = OtherMethod(model, Method("base", "base"), self.recipe)
        self.base = {"method": "base", "numbers": 0, **measure(task, untouched, tokenizer)}

    def _job(self, tries: int) -> dict[str, Any]:
        record = self.recipe.record(self.data)
        for section, names in _VARIED.items():
            for name in names:
                record[section].pop(name, None)
        return {
            "task": self.recipe.task.name,
            "model": self.recipe.model.name,
            "metric": self.task.metric,
            "rows": self.task.sizes(),
            "epochs": self.recipe.optimisation.epochs,
            "tries": tries,
            "recipe": plain(record),
        }


def _finetune(
    method: Method, recipe: Recipe, task: Task
) -> tuple[Run, tuple[torch.device, torch.dtype]]:
    """The figures of one run, and the device and the dtype of the model."""
    set_seed(recipe.optimisation.seed)  # the new head is the same for all methods
    model, tokenizer = load_for(task, recipe)
    used = next(model.parameters()).device, model.dtype
    system, head = system_of(method, model, recipe)
    return {**fit(system, tokenizer, task, recipe), "head": head}, used


def _told(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a try came to."""
    return {"error": run["error"]} if "error" in run else {"validation": max(run["validation"])}


def _case(method: Method, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tests = [run["test"] for run in runs]
    several = {
        name: round(statistics.mean(run["tests"][name] for run in runs), 4)
        for name in runs[0].get("tests", {})
    }
    return {
        "method": method.name,
        "family": method.family,
        **({} if method.rank is None else {"rank": method.rank}),
        "lr": runs[0]["lr"],
        "numbers": runs[0]["trainable"] - runs[0]["head"],
        "head": runs[0]["head"],
        "test": round(statistics.mean(tests), 4),
        **({"tests": several} if several else {}),
        "sd": round(statistics.stdev(tests), 4) if len(tests) > 1 else None,
        "seeds": len(tests),
        "validation": round(statistics.mean(max(run["validation"]) for run in runs), 4),
        "seconds": round(statistics.mean(run["seconds"] for run in runs), 1),
    }
