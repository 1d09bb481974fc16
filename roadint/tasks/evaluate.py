"""`roadint eval` of a checkpoint that a task trained: the task's metric on its test rows."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from roadint.checkpoint.content import Checkpoint
from roadint.model.road_model import RoadModel
from roadint.recipes.names import flat
from roadint.recipes.recipe import Recipe
from roadint.recipes.sections import DataSection, TaskSection
from roadint.tasks.glue import FORMATS
from roadint.tasks.run import prepare_padding
from roadint.tasks.task import Task, measure


def recipe_of(saved: Checkpoint) -> Recipe | None:
    """What a checkpoint's recipe says of its task; None where none trained it.

    Args:
        saved: The checkpoint.

    Returns:
        A recipe with the same task, data and seed, so that the rows that test are the training's.

    Raises:
        RoadError: where the checkpoint's record of them is damaged.
    """
    recorded = saved.config["training"].get("recipe")
    settings = flat(recorded) if isinstance(recorded, dict) else {}
    if settings.get("task") is None:
        return None
    if settings["task"] in FORMATS:
        settings.setdefault("split_seed", 0)  # what every run had before the setting was there
    sections = (DataSection, TaskSection)
    wanted = {section.short(name) for section in sections for name in section.model_fields}
    wanted.add("seed")
    return Recipe(**{name: value for name, value in settings.items() if name in wanted})


@torch.no_grad()
def evaluate_task(
    road: RoadModel, tokenizer: PreTrainedTokenizerBase, task: Task
) -> dict[str, Any]:
    """Measure a checkpoint on a task's test rows.

    Args:
        road: The checkpoint on its base model.
        tokenizer: The model's tokenizer.
        task: The task.

    Returns:
        "metric", "rows" by split, "test", and for several sets of test rows "tests", each by name.
    """
    prepare_padding(road.model, tokenizer)  # type: ignore[arg-type]
    road.eval()
    measured = measure(task, road, tokenizer)
    return {"metric": task.metric, "rows": task.sizes(), **measured}


def over_checkpoints(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean and the sample standard deviation of several checkpoints' scores.

    Args:
        reports: What `evaluate_task` says of each.

    Returns:
        "mean" and "sd", each with "test" and, where there are several sets of test rows, "tests".
    """
    scores = [report["test"] for report in reports]
    names = reports[0].get("tests", {})
    tests = {name: [report["tests"][name] for report in reports] for name in names}
    result: dict[str, dict[str, Any]] = {}
    for label, of in (("mean", statistics.mean), ("sd", statistics.stdev)):
        result[label] = {"test": round(of(scores), 4)}
        if tests:
            result[label]["tests"] = {name: round(of(each), 4) for name, each in tests.items()}
    return result
