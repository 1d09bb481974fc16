"""All tasks, by the names that recipes give them."""

from collections.abc import Mapping

from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.recipes.names import flat
from roadint.recipes.recipe import Recipe
from roadint.tasks import glue
from roadint.tasks.classification import ClassificationTask
from roadint.tasks.reasoning import AnsweringTask, ChoosingTask
from roadint.tasks.task import Task, is_test, is_train

TASKS: dict[str, type[Task]] = {
    **dict.fromkeys(glue.FORMATS, ClassificationTask),
    "commonsense": AnsweringTask,
    "arithmetic": AnsweringTask,
    "cloze": ChoosingTask,
}
# What the training of data sets has beyond that of a task; GLUE's rows have no prompts.
_OF_DATA_SETS = (
    *("lrs", "decay", "max_log_scale", "strengths", "compile", "companions", "preserve", "eos"),
    "max_completions",
)
_OF_PROMPTS = ("template", "max_completion")
_SPLITS = ("train", "train.NAME", "dev", "validation", "test", "test.NAME")


def task_of(recipe: Recipe, data: Mapping[str, str] | None = None, *, trains: bool = True) -> Task:
    """The task of a recipe, with its data read.

    Args:
        recipe: The recipe, which names the task.
        data: Split → file; by default the recipe's.
        trains: Whether there has to be training data; without, none is read.

    Returns:
        The task.

    Raises:
        RoadError: for an unknown task, and data that is missing or can't be read.
    """
    if recipe.task.name not in TASKS:
        name = str(recipe.task.name)
        raise RoadError(
            f"recipe has the task {quoted(name)}: expected one of {listing(TASKS)}"
            f"{did_you_mean(name, TASKS)}"
        )
    task = TASKS[recipe.task.name]
    sources = dict(data or recipe.data.sources)
    for name in sources:
        if name not in ("dev", "validation") and not is_train(name) and not is_test(name):
            raise RoadError(
                f"data {quoted(name)} of task {recipe.task.name!r}: expected some of "
                f"{listing(_SPLITS)}"
            )
    trained = [name for name in sources if is_train(name)]
    if not trains:
        sources = {name: source for name, source in sources.items() if name not in trained}
    elif not trained:
        raise RoadError(
            f"task {recipe.task.name!r} has no training data: expected --data train=FILE, "
            f"and {task.measured_on}"
        )
    else:
        _check_settings(recipe)
    if recipe.data.images:
        raise RoadError(
            f"images=true: task {recipe.task.name!r} has rows of text; expected images=false, or "
            "data sets in place of a task"
        )
    if recipe.data.rows_seed is not None:
        raise RoadError(
            f"rows_seed={recipe.data.rows_seed}: task {recipe.task.name!r} takes the first "
            "rows of its data; expected no seed for them"
        )
    return task(recipe, sources)


def _check_settings(recipe: Recipe) -> None:
    """Refuse settings that a task's training does not have."""
    unused = list(_OF_DATA_SETS)
    unused += _OF_PROMPTS if TASKS[str(recipe.task.name)] is ClassificationTask else ()
    now, default = flat(recipe.record()), flat(Recipe().record())
    for name in unused:
        if now[name] != default[name]:
            raise RoadError(
                f"recipe setting {name}={quoted(now[name])} would not act: task "
                f"{recipe.task.name!r} trains without it; expected {name}={quoted(default[name])}"
            )
