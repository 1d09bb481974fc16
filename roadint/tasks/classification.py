"""GLUE's tasks on a classifier."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from roadint.data.collate import by_length
from roadint.errors import RoadError, listing
from roadint.recipes.recipe import Recipe
from roadint.tasks import glue
from roadint.tasks.task import (
    SCORED_ROWS,
    Prepared,
    check_examples,
    check_splits,
    is_test,
    is_train,
)


class ClassificationTask:
    """A GLUE task: the dev set is halved into validation and test, as in the paper (appendix C.1).

    The run's seed draws the halves, or the recipe's split_seed.

    Args:
        recipe: The recipe, with the task's name and the number of training rows.
        sources: "train", and "dev" or "validation" and "test" → a file, or "hub". In place of
            "test" there may be several, "test.rte"; without "train" nothing is trained.

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
        split, seed = recipe.task.split_seed, recipe.optimisation.seed
        self.split_seed = seed if split is None else split
        several = [name for name in sources if is_train(name) and name != "train"]
        if several:
            raise RoadError(
                f"task {self.task!r} has training data {listing(several)}: expected one file, "
                "--data train=FILE; questions alone train on several"
            )
        self.splits = self._measured(sources, recipe.task.scored_rows)
        if "train" in sources:
            rows = glue.load_glue(self.task, sources["train"], limit=recipe.data.rows)
            self.splits = {"train": rows, **self.splits}
        check_splits(self.splits)

    @property
    def tests(self) -> list[str]:
        """The splits that are measured at the end."""
        return [name for name in self.splits if is_test(name)]

    def _measured(
        self, sources: Mapping[str, str], limit: int | None
    ) -> dict[str, list[glue.GlueRow]]:
        """The rows to validate and to test with."""
        own = [name for name in sources if name == "validation" or is_test(name)]
        for name in own:
            if sources[name] == "hub":
                raise RoadError(
                    f"data {name}=hub of task {self.task!r}: the hub's test rows have no labels; "
                    "expected dev=hub, which is split into validation and test, or files"
                )
        if "dev" in sources:
            if own:
                raise RoadError(
                    f"task {self.task!r} has data for dev and for {listing(own)}: expected dev "
                    "alone, which is split into validation and test, or these alone"
                )
            dev = glue.load_glue(self.task, sources["dev"], "dev")
            halves = glue.split_dev(dev, self.split_seed)
            return {"validation": halves[0][:limit], "test": halves[1][:limit]}
        validates = "validation" in own or "train" not in sources
        if not validates or not any(is_test(name) for name in own):
            raise RoadError(
                f"task {self.task!r} has nothing to be measured on: expected {self.measured_on}"
            )
        return {name: glue.load_glue(self.task, sources[name], limit=limit) for name in own}

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """The training examples, tokens with labels, and what pads a batch of them."""
        if tokenizer.pad_token_id is None:
            raise RoadError(
                f"{type(tokenizer).__name__} has no padding token: "
                "expected one (tokenizer.pad_token = …)"
            )
        return self.encoded(tokenizer, "train"), DataCollatorWithPadding(tokenizer)

    @torch.no_grad()
    def score(self, model: Any, tokenizer: PreTrainedTokenizerBase, split: str) -> float:
        """The task's metric."""
        encoded, collate = self.encoded(tokenizer, split), DataCollatorWithPadding(tokenizer)
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

    def encoded(self, tokenizer: PreTrainedTokenizerBase, split: str) -> list[dict[str, Any]]:
        """The tokens and labels of a split's rows."""
        rows = self.splits[split]
        columns = [list(texts) for texts in zip(*(row.texts for row in rows), strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=self.max_length)
        return [
            {**{name: encoded[name][index] for name in encoded}, "labels": row.label}
            for index, row in enumerate(rows)
        ]
