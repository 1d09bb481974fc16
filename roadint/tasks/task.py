"""The protocol of a task: examples, batches and a score."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from transformers import PreTrainedTokenizerBase

from roadint.data.collate import Example, check_fits
from roadint.data.prompts import pad_id
from roadint.errors import RoadError
from roadint.recipes.recipe import Recipe

SCORED_ROWS = 32  # in a batch
Prepared = tuple[list[Any], Callable[[Any], dict[str, Any]]]  # examples, and their collator


class Task(Protocol):
    """A task with its data, read and checked before a model is loaded.

    Args:
        recipe: The recipe.
        sources: Split → file; "train", or several as "train.boolq", which may be left out where
            nothing is to be trained, and the splits that the task is measured on.

    Raises:
        RoadError: for data that is missing or can't be read.
    """

    measured_on: ClassVar[str]
    """The options of the command line that name the data to measure on."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, str]) -> None: ...

    @property
    def labels(self) -> int | None:
        """How many classes a classifier needs; None for a language model."""

    @property
    def metric(self) -> str:
        """The name of the score."""

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """The training examples, and what makes a batch of some."""

    def score(self, model: Any, tokenizer: PreTrainedTokenizerBase, split: str) -> float:
        """Measure a model.

        Args:
            model: A RoadModel, or another method's model that is called as one.
            tokenizer: The model's tokenizer.
            split: "validation", or one of `tests`.

        Returns:
            The metric.
        """

    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""

    @property
    def tests(self) -> list[str]:
        """The splits that are measured at the end: "test", or "test.boolq", "test.arc_e", …"""


def is_train(split: str) -> bool:
    """Whether a split is one of those that are trained on."""
    return _is_part(split, "train")


def is_test(split: str) -> bool:
    """Whether a split is one of those that are measured at the end."""
    return _is_part(split, "test")


def _is_part(split: str, of: str) -> bool:
    return split == of or (split.startswith(f"{of}.") and split != f"{of}.")


def measure(task: Task, system: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Measure a model on all test rows.

    Args:
        task: The task.
        system: A RoadModel, or another method's model that is called as one.
        tokenizer: The model's tokenizer.

    Returns:
        "test", the metric, and where there are several sets of test rows their mean; then "tests"
        has each by its name.
    """
    scores = {name: task.score(system, tokenizer, name) for name in task.tests}
    mean = round(sum(scores.values()) / len(scores), 4)
    if list(scores) == ["test"]:
        return {"test": mean}
    tests = {name.removeprefix("test."): round(score, 4) for name, score in scores.items()}
    return {"test": mean, "tests": tests}


def check_examples(
    system: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Any]
) -> None:
    """Check that a model can read a task's examples.

    Args:
        system: A RoadModel, or another method's model that is called as one.
        tokenizer: The model's tokenizer.
        examples: Examples, or mappings with input_ids.

    Raises:
        RoadError: where an example has more tokens than positions, or ids without an embedding.
    """
    listed = [
        example if isinstance(example, Example) else Example(example["input_ids"], [], None)
        for example in examples
    ]
    check_fits(listed, system.model, pad_id(tokenizer))


def check_splits(splits: Mapping[str, Sequence[Any]]) -> None:
    """Check that every split has rows.

    Args:
        splits: The rows by the split's name.

    Raises:
        RoadError: where a split is empty.
    """
    counts = ", ".join(f"{len(rows)} for {name}" for name, rows in splits.items())
    for name, rows in splits.items():
        if not rows:
            raise RoadError(
                f"no rows are left for {name} ({counts}): "
                f"expected more rows, or --data {name}=FILE of its own"
            )
