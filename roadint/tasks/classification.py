"""GLUE's tasks on a classifier."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from roadint.data.collate import by_length
from roadint.errors import RoadError
from roadint.recipes.recipe import Recipe
from roadint.tasks import glue
from roadint.tasks.task import SCORED_ROWS, Prepared, check_examples, check_splits


class ClassificationTask:
    """A GLUE task: the dev set is halved into validation and test, as in the paper (appendix C.1).

    Args:
        recipe: The recipe, with the task's name and the number of training rows.
        sources: "train", and "dev" or "validation" and "test" → a file, or "hub".

    Raises:
        RoadError: for data that is missing or can't be read.
    """

    measured_on: ClassVar[str] = "--data dev=FILE, or validation=FILE and test=FILE"

    def __init__(self, recipe: Recipe, sources: Mapping[str, str]) -> None:
        self.task = str(recipe.task.name)
        form = glue.FORMATS[self.task]
        self.metric: str = form.metric
        self.labels = 1 if form.labels is None else len(form.labels)  # 1 is a regression
        self.max_length = recipe.data.max_length
        if "dev" in sources:
            halves = glue.split_dev(glue.load_glue(self.task, sources["dev"], "dev"))
        elif "validation" in sources and "test" in sources:
            validation = glue.load_glue(self.task, sources["validation"])
            halves = validation, glue.load_glue(self.task, sources["test"])
        else:
            raise RoadError(
                f"task {self.task!r} has nothing to be measured on: expected {self.measured_on}"
            )
        self.splits = {
            "train": glue.load_glue(self.task, sources["train"], limit=recipe.data.rows),
            "validation": halves[0],
            "test": halves[1],
        }
        check_splits(self.splits)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """The training examples, tokens with labels, and what pads a batch of them."""
        if tokenizer.pad_token_id is None:
            raise RoadError(
                f"{type(tokenizer).__name__} has no padding token: "
                "expected one (tokenizer.pad_token = …)"
            )
        return self._encoded(tokenizer, "train"), DataCollatorWithPadding(tokenizer)

    @torch.no_grad()
    def score(self, model: Any, tokenizer: PreTrainedTokenizerBase, split: str) -> float:
        """The task's metric."""
        encoded, collate = self._encoded(tokenizer, split), DataCollatorWithPadding(tokenizer)
        check_examples(model, tokenizer, encoded)
        predicted = np.zeros(len(encoded))
        for batch in by_length([len(row["input_ids"]) for row in encoded], SCORED_ROWS):
            inputs = collate([encoded[index] for index in batch])
            del inputs["labels"]
            inputs = {name: value.to(model.device) for name, value in inputs.items()}
            logits = model(**inputs).logits.float().cpu()
            predicted[batch] = (logits[:, 0] if self.labels == 1 else logits.argmax(-1)).numpy()
        labels = np.array([row.label for row in self.splits[split]])
        return glue.measure(self.task, predicted, labels)

    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""
        return {name: len(rows) for name, rows in self.splits.items()}

    def _encoded(self, tokenizer: PreTrainedTokenizerBase, split: str) -> list[dict[str, Any]]:
        rows = self.splits[split]
        columns = [list(texts) for texts in zip(*(row.texts for row in rows), strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=self.max_length)
        return [
            {**{name: encoded[name][index] for name in encoded}, "labels": row.label}
            for index, row in enumerate(rows)
        ]
