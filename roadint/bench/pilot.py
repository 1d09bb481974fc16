"""`roadint bench pilot`: the paper's pilot studies (section 3.1, figure 2), measured.

Study 1 finetunes an encoder on SST-2, and compares the first token's hidden states after every
layer before and after: ΔM is the change of their size, ΔD the cosine between them. Study 2 freezes
the encoder, and trains classifiers that read the first token's last state whole, its magnitude
alone or its angle alone; a baseline reads that of an encoder with random weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from roadint.bench import pilot_changes, pilot_classifiers
from roadint.bench.machine import default_device, machine
from roadint.errors import RoadError, check_known, did_you_mean, listing, quoted
from roadint.recipes.recipe import Recipe
from roadint.tasks import glue
from roadint.tasks.classification import ClassificationTask
from roadint.tasks.registry import task_of

FINETUNED = "sst2"
"""The task of study 1."""

FROZEN = ("rte", "mrpc", "stsb", "cola")
"""The tasks of study 2, by default."""

STUDIES = {"1": ("1",), "2": ("2",), "both": ("1", "2")}
_SPLITS = ("train", "dev", "validation", "test")


def bench_pilot(
    recipe: Recipe,
    data: Mapping[str, str] | None = None,
    *,
    study: str = "both",
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2, 3),
    rows: int | None = None,
    rates: Mapping[str, float] | None = None,
    classifier_rows: int | None = None,
    classifier_epochs: int = 10,
    classifier_rates: Sequence[float] = pilot_classifiers.RATES,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure the pilot studies.

    Args:
        recipe: A recipe of a GLUE task: its model, and how study 1 finetunes.
        data: "TASK.train" and "TASK.dev" (or "TASK.validation" and "TASK.test") → a file of GLUE's,
            or "hub". Study 1 takes those of sst2, study 2 those of all others; by default the hub's
            of SST-2, RTE, MRPC, STS-B and CoLA.
        study: "1", "2" or "both".
        methods: Names in `pilot_changes.RATES`; all by default.
        seeds: The seeds of both studies.
        rows: How many training rows study 1 takes, the first ones; the recipe's, or all, by
            default.
        rates: Learning rates of finetuning by method.
        classifier_rows: As `rows`, for study 2.
        classifier_epochs: How often a classifier of study 2 sees them.
        classifier_rates: The learning rates that study 2 tries.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "runs", "cases", "claims"}. Cases of study 1 are of a method and a layer,
        those of study 2 of a task and what the classifier reads.

    Raises:
        RoadError: for bad input, before a model is loaded.
    """
    check_known("study", study, STUDIES)
    chosen = list(methods) or list(pilot_changes.RATES)
    for name in [*chosen, *(rates or {})]:
        check_known("method", name, pilot_changes.RATES)
    sources = data or {f"{n}.{s}": "hub" for n in (FINETUNED, *FROZEN) for s in _SPLITS[:2]}
    tasks = _tasks(recipe, sources, STUDIES[study], {"1": rows, "2": classifier_rows})
    report: dict[str, Any] = {
        "machine": machine(default_device(), getattr(torch, recipe.model.dtype, torch.float32)),
        "job": {
            "model": recipe.model.name,
            "tasks": {name: task.sizes() for name, (task, _) in tasks.items()},
            "epochs": recipe.optimisation.epochs,
            "classifier_epochs": classifier_epochs,
            "seeds": list(seeds),
        },
        "runs": [],
        "cases": [],
        "claims": [],
    }
    for name, (task, tuned) in tasks.items():
        if name == FINETUNED:
            runs, cases = pilot_changes.study_changes(
                task, tuned, chosen, seeds, {**pilot_changes.RATES, **(rates or {})}, quiet=quiet
            )
            report["runs"] += runs
            claims = pilot_changes.claims(cases)
        else:
            cases, claims = pilot_classifiers.study_classifiers(
                task, tuned, seeds, classifier_rates, classifier_epochs, quiet=quiet
            )
        report["cases"] += cases
        report["claims"] += claims
    return report


def _tasks(
    recipe: Recipe, data: Mapping[str, str], studies: Sequence[str], rows: Mapping[str, int | None]
) -> dict[str, tuple[ClassificationTask, Recipe]]:
    """The tasks of the studies, their data read, each with its recipe; that of study 1 first."""
    sources = _sources(data)
    of_study = {study: [n for n in sources if (n == FINETUNED) == (study == "1")] for study in "12"}
    tasks = {}
    for study in studies:
        if not of_study[study]:
            task = FINETUNED if study == "1" else FROZEN[0]
            raise RoadError(
                f"study {study} has no data, there is some of {listing(sources)}: expected "
                f"--data {task}.train=FILE --data {task}.dev=FILE, or --study {'12'[study == '1']}"
            )
        for name in of_study[study]:
            changed = {"task": name, **({"rows": rows[study]} if rows[study] else {})}
            tuned = recipe.override(changed)
            task_of_data = task_of(tuned, sources[name])
            assert isinstance(task_of_data, ClassificationTask)
            tasks[name] = task_of_data, tuned
    return tasks


def _sources(data: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Split → source, by task."""
    sources: dict[str, dict[str, str]] = {}
    for name, source in data.items():
        task, _, split = name.partition(".")
        if split not in _SPLITS or task not in glue.FORMATS:
            raise RoadError(
                f"data {quoted(name)}: expected TASK.SPLIT, as in sst2.train; tasks are "
                f"{listing(glue.FORMATS)}, splits {listing(_SPLITS)}"
                f"{did_you_mean(name, [f'{t}.{s}' for t in glue.FORMATS for s in _SPLITS])}"
            )
        sources.setdefault(task, {})[split] = source
    for task, splits in sources.items():
        if "train" not in splits or not ("dev" in splits or {"validation", "test"} <= set(splits)):
            raise RoadError(
                f"task {task!r} has data for {listing(splits)} alone: expected --data "
                f"{task}.train=FILE and --data {task}.dev=FILE, or {task}.validation and "
                f"{task}.test in place of {task}.dev"
            )
    return sources
