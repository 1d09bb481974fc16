"""What a task is to a trainer: examples, batches and a score."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DataCollatorWithPadding

from roadint.data.collate import (
    Collator,
    Example,
    by_length,
    check_fits,
    completion_nll,
    moved,
    row_sums,
    tokenize,
)
from roadint.data.prompts import batch_prompts, pad_id
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.recipes.recipe import Recipe
from roadint.tasks import glue, reasoning

REASONING = ("commonsense", "arithmetic", "cloze")
_SCORED_ROWS = 32  # in a batch


class Job(Protocol):
    """One task with its data, read and checked before a model is loaded.

    labels: how many classes a classifier needs, None for a language model. metric: the name of the score.
    """

    @property
    def labels(self) -> int | None: ...  # noqa: D102

    @property
    def metric(self) -> str: ...  # noqa: D102

    def prepare(self, tokenizer: Any) -> tuple[list[Any], Callable[[Any], Any]]:
        """The training examples, and what makes a batch of some."""

    def score(self, model: Any, tokenizer: Any, split: str) -> float:
        """The metric on "validation" or "test"; model: forward(**inputs), and generate(**inputs) of a language model."""

    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""


def job_of(recipe: Recipe, data: Mapping[str, str] | None = None) -> Job:
    """The job of a recipe's task, with its data read. Raises RoadError."""
    known = (*glue.TASKS, *REASONING)
    if recipe.task.name not in known:
        name = str(recipe.task.name)
        raise RoadError(
            f"recipe has the task {quoted(name)}: expected one of {listing(known)}{did_you_mean(name, known)}"
        )
    sources = dict(data or recipe.data.sources)
    expected = ("train", "dev", "validation", "test")
    for name in sources:
        if name not in expected:
            raise RoadError(
                f"data {quoted(name)} of task {recipe.task.name!r}: expected some of {listing(expected)}"
            )
    if "train" not in sources:
        raise RoadError(
            f"task {recipe.task.name!r} has no training data: expected --data train=FILE, and {_wanted(recipe.task.name)}"
        )
    if recipe.data.rows_seed is not None:
        raise RoadError(
            f"rows_seed={recipe.data.rows_seed}: task {recipe.task.name!r} takes the first rows of its data; expected no seed for them"
        )
    if recipe.task.name in glue.TASKS:
        return Classification(recipe, sources)
    return Choosing(recipe, sources) if recipe.task.name == "cloze" else Answering(recipe, sources)


def check_examples(system: Any, tokenizer: Any, examples: Sequence[Any]) -> None:
    """Raises RoadError where a model, or the one inside of a system, can't read what a job prepared."""
    listed = [
        each if isinstance(each, Example) else Example(each["input_ids"], [], None)
        for each in examples
    ]
    check_fits(listed, getattr(system, "model", system), pad_id(tokenizer))


class Classification:
    """A GLUE task on a classifier: the dev set is halved into validation and test, as the paper does."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, str]) -> None:
        self.task = str(recipe.task.name)
        known = glue.TASKS[self.task]
        self.metric, self.labels = known.metric, len(known.labels or ("a number",))
        self.max_length = recipe.data.max_length
        if "dev" in sources:
            halves = glue.split_dev(glue.load_glue(self.task, sources["dev"], "dev"))
        elif "validation" in sources and "test" in sources:
            halves = (
                glue.load_glue(self.task, sources["validation"]),
                glue.load_glue(self.task, sources["test"]),
            )
        else:
            raise RoadError(
                f"task {self.task!r} has nothing to be measured on: expected {_wanted(self.task)}"
            )
        self.splits = {
            "train": glue.load_glue(self.task, sources["train"], limit=recipe.data.rows),
            "validation": halves[0],
            "test": halves[1],
        }
        _check_splits(self.splits)

    def prepare(self, tokenizer: Any) -> tuple[list[Any], Callable[[Any], Any]]:
        """Tokens and labels; batches are padded to their longest row."""
        if tokenizer.pad_token_id is None:
            raise RoadError(
                f"{type(tokenizer).__name__} has no padding token: expected one (tokenizer.pad_token = …)"
            )
        return self._encoded(tokenizer, "train"), DataCollatorWithPadding(tokenizer)

    @torch.no_grad()
    def score(self, model: Any, tokenizer: Any, split: str) -> float:
        """The task's metric."""
        encoded, collate = self._encoded(tokenizer, split), DataCollatorWithPadding(tokenizer)
        check_examples(model, tokenizer, encoded)
        found = np.zeros(len(encoded))
        for places in by_length([len(each["input_ids"]) for each in encoded], _SCORED_ROWS):
            batch = {
                name: value.to(model.device)
                for name, value in collate([encoded[place] for place in places]).items()
            }
            batch.pop("labels")
            logits = model(**batch).logits.float().cpu()
            found[places] = (logits[:, 0] if self.labels == 1 else logits.argmax(-1)).numpy()
        return glue.measure(self.task, found, np.array([row.label for row in self.splits[split]]))

    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""
        return {name: len(rows) for name, rows in self.splits.items()}

    def _encoded(self, tokenizer: Any, split: str) -> list[dict[str, Any]]:
        rows = self.splits[split]
        texts = [[row.texts[place] for row in rows] for place in range(len(rows[0].texts))]
        encoded = tokenizer(*texts, truncation=True, max_length=self.max_length)
        return [
            {**{name: encoded[name][i] for name in encoded}, "labels": row.label}
            for i, row in enumerate(rows)
        ]


class Answering:
    """Questions on a language model, answered greedily; where no rows validate, a tenth of the training rows does (200 at most)."""

    labels: int | None = None
    metric = "accuracy"

    def __init__(self, recipe: Recipe, sources: Mapping[str, str]) -> None:
        self.recipe = recipe
        if "test" not in sources:
            raise RoadError(
                f"task {recipe.task.name!r} has nothing to be measured on: expected {_wanted(str(recipe.task.name))}"
            )
        rows = reasoning.load_questions(sources["train"])
        order = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        held = 0 if "validation" in sources else min(200, len(rows) // 10)
        validation = (
            reasoning.load_questions(sources["validation"])
            if "validation" in sources
            else order[:held]
        )
        self.splits = {
            "train": order[held:][: recipe.data.rows],
            "validation": validation[: recipe.task.scored_rows],
            "test": reasoning.load_questions(sources["test"], recipe.task.scored_rows),
        }
        _check_splits(self.splits)

    def prepare(self, tokenizer: Any) -> tuple[list[Any], Callable[[Any], Any]]:
        """Prompts and completions, which end with the end-of-sequence token; the loss is the completions'."""
        rows = [
            {"instruction": each.instruction, "output": each.output}
            for each in self.splits["train"]
        ]
        return self._tokenized(rows, tokenizer, eos=True), Collator(tokenizer)

    def score(self, model: Any, tokenizer: Any, split: str) -> float:
        """The share of right answers, by greedy decoding."""
        rows = sorted(self.splits[split], key=lambda each: len(each.instruction))
        right = 0
        for start in range(0, len(rows), _SCORED_ROWS):
            few = rows[start : start + _SCORED_ROWS]
            batch = batch_prompts(
                tokenizer,
                self.recipe.data.template,
                [each.instruction for each in few],
                self.recipe.data.max_length,
            )
            tokens = model.generate(
                **{name: value.to(model.device) for name, value in batch.items()},
                do_sample=False,
                max_new_tokens=self.recipe.task.max_new_tokens,
                pad_token_id=pad_id(tokenizer),
            )
            texts = tokenizer.batch_decode(
                tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
            )
            right += sum(
                reasoning.answered(text, each.answer) for text, each in zip(texts, few, strict=True)
            )
        return right / len(rows)

    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""
        return {name: len(rows) for name, rows in self.splits.items()}

    def _tokenized(self, rows: list[dict[str, str]], tokenizer: Any, *, eos: bool) -> list[Example]:
        about = {
            name: getattr(self.recipe.data, name)
            for name in ("template", "max_length", "max_completion")
        }
        return tokenize(rows, tokenizer, "all", eos=eos, **about)


class Choosing(Answering):
    """Questions with choices on a language model: the likeliest choice is its answer, and the right one is what it learns."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, str]) -> None:
        super().__init__(recipe, sources)
        self._cloze = {
            name: [reasoning.cloze(each) for each in rows] for name, rows in self.splits.items()
        }

    def prepare(self, tokenizer: Any) -> tuple[list[Any], Callable[[Any], Any]]:
        """Questions and right choices, which no end-of-sequence token follows; the loss is the choices'."""
        rows = [
            {"instruction": each.prompt, "output": each.choices[each.right]}
            for each in self._cloze["train"]
        ]
        return self._tokenized(rows, tokenizer, eos=False), Collator(tokenizer)

    @torch.no_grad()
    def score(self, model: Any, tokenizer: Any, split: str) -> float:
        """The share of questions whose right choice has the largest likelihood (of all its tokens)."""
        questions = self._cloze[split]
        rows = [
            {"instruction": each.prompt, "output": choice}
            for each in questions
            for choice in each.choices
        ]
        examples, collate = self._tokenized(rows, tokenizer, eos=False), Collator(tokenizer)
        check_examples(model, tokenizer, examples)
        found = np.zeros(len(examples))
        for places in by_length([len(each) for each in examples], _SCORED_ROWS):
            nll, row = completion_nll(
                model, moved(collate([examples[place] for place in places]), model.device)
            )
            found[places] = row_sums(nll, row).cpu().numpy()
        ends = np.cumsum([len(each.choices) for each in questions])[:-1]
        return float(
            np.mean(
                [
                    own.argmin() == each.right
                    for own, each in zip(np.split(found, ends), questions, strict=True)
                ]
            )
        )


def _check_splits(splits: Mapping[str, Sequence[Any]]) -> None:
    for name, rows in splits.items():
        if not rows:
            counts = ", ".join(f"{len(each)} for {other}" for other, each in splits.items())
            raise RoadError(
                f"no rows are left for {name} ({counts}): expected more rows, or --data {name}=FILE of its own"
            )


def _wanted(task: str) -> str:
    return (
        "--data test=FILE"
        if task in REASONING
        else "--data dev=FILE, or validation=FILE and test=FILE"
    )
