"""Reasoning on a language model: by answers that it writes, or by likelihoods of choices."""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from roadint.data.collate import (
    Collator,
    Example,
    by_length,
    completion_nll,
    moved,
    row_sums,
    tokenize,
)
from roadint.data.prompts import batch_prompts, pad_id
from roadint.errors import RoadError
from roadint.recipes.recipe import Recipe
from roadint.tasks.questions import ChoiceQuestion, Question, answered, load_questions
from roadint.tasks.task import (
    SCORED_ROWS,
    Prepared,
    check_examples,
    check_splits,
    is_test,
    is_train,
)

_HELD_OUT = 200  # training rows of a file, at most, where none validate


class ReasoningTask:
    """Questions with answers, to train, to validate and to test with.

    Without rows for validation, a tenth of the training rows is held out (200 of a file at most).

    Args:
        recipe: The recipe, with numbers of rows and the template of prompts.
        sources: "train", "test" and, optionally, "validation" → a file. In place of "train" and
            of "test" there may be several, "train.boolq" and "train.arc_e", of which the recipe's
            number of rows is taken each; without any to train, nothing is trained.

    Raises:
        RoadError: for data that is missing or can't be read.
    """

    measured_on: ClassVar[str] = "--data test=FILE, or several: --data test.boolq=FILE"
    labels: int | None = None
    metric: str = "accuracy"

    def __init__(self, recipe: Recipe, sources: Mapping[str, str]) -> None:
        self.recipe = recipe
        if recipe.task.split_seed is not None:
            raise RoadError(
                f"split_seed={recipe.task.split_seed}: task {recipe.task.name!r} has no dev set "
                "to split; expected none"
            )
        self.tests = [name for name in sources if is_test(name)]
        if not self.tests:
            raise RoadError(
                f"task {recipe.task.name!r} has nothing to be measured on: "
                f"expected {self.measured_on}"
            )
        trained = {name: source for name, source in sources.items() if is_train(name)}
        self.splits = self._trained(trained, sources.get("validation")) if trained else {}
        for name in self.tests:
            self.splits[name] = load_questions(sources[name], recipe.task.scored_rows)
        check_splits(self.splits)

    def _trained(
        self, sources: Mapping[str, str], validation: str | None
    ) -> dict[str, list[Question]]:
        """The rows to train and to validate with; those held out take turns, file by file."""
        train: list[Question] = []
        held_out: list[list[Question]] = []
        for source in sources.values():
            rows = load_questions(source)
            rows = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
            count = min(_HELD_OUT, len(rows) // 10) if validation is None else 0
            held_out.append(rows[:count])
            train += rows[count:][: self.recipe.data.rows]
        turns = [row for turn in zip_longest(*held_out) for row in turn if row is not None]
        validated = turns if validation is None else load_questions(validation)
        return {"train": train, "validation": validated[: self.recipe.task.scored_rows]}

    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""
        return {name: len(rows) for name, rows in self.splits.items()}

    def tokenized(
        self, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], *, eos: bool
    ) -> list[Example]:
        """Tokenise pairs of an instruction and its completion."""
        recipe = self.recipe
        return tokenize(
            [{"instruction": instruction, "output": output} for instruction, output in pairs],
            tokenizer,
            "all",
            template=recipe.data.template,
            max_length=recipe.data.max_length,
            max_completion=recipe.data.max_completion,
            eos=eos,
        )


class AnsweringTask(ReasoningTask):
    """Questions that the model answers greedily, in words (appendices C.2, C.3)."""

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """Prompts and completions, which end with the end-of-sequence token.

        The loss is the completions'.
        """
        pairs = [(row.instruction, row.output) for row in self.splits["train"]]
        return self.tokenized(tokenizer, pairs, eos=True), Collator(tokenizer)

    def score(self, model: Any, tokenizer: PreTrainedTokenizerBase, split: str) -> float:
        """The share of right answers."""
        rows = sorted(self.splits[split], key=lambda row: len(row.instruction))
        right = 0
        for start in range(0, len(rows), SCORED_ROWS):
            batch = rows[start : start + SCORED_ROWS]
            texts = self._answers(model, tokenizer, [row.instruction for row in batch])
            right += sum(answered(text, row.answer) for text, row in zip(texts, batch, strict=True))
        return right / len(rows)

    def _answers(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, instructions: list[str]
    ) -> list[str]:
        recipe = self.recipe
        batch = batch_prompts(tokenizer, recipe.data.template, instructions, recipe.data.max_length)
        tokens = model.generate(
            **{name: value.to(model.device) for name, value in batch.items()},
            do_sample=False,
            max_new_tokens=recipe.task.max_new_tokens,
            pad_token_id=pad_id(tokenizer),
        )
        answers = tokens[:, batch["input_ids"].shape[1] :]
        return list(tokenizer.batch_decode(answers, skip_special_tokens=True))


class ChoosingTask(ReasoningTask):
    """Questions with choices: the likeliest is the model's answer, and the right one is learned."""

    def __init__(self, recipe: Recipe, sources: Mapping[str, str]) -> None:
        super().__init__(recipe, sources)
        self._choices = {
            name: [ChoiceQuestion.of(row) for row in rows] for name, rows in self.splits.items()
        }

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """Questions and right choices, which no end-of-sequence token follows.

        The loss is the choices'.
        """
        questions = self._choices["train"]
        pairs = [(question.prompt, question.choices[question.right]) for question in questions]
        return self.tokenized(tokenizer, pairs, eos=False), Collator(tokenizer)

    @torch.no_grad()
    def score(self, model: Any, tokenizer: PreTrainedTokenizerBase, split: str) -> float:
        """The share of questions whose right choice is the likeliest, with all its tokens."""
        questions = self._choices[split]
        pairs = [(question.prompt, choice) for question in questions for choice in question.choices]
        examples, collate = self.tokenized(tokenizer, pairs, eos=False), Collator(tokenizer)
        check_examples(model, tokenizer, examples)
        losses = np.zeros(len(examples))
        for batch in by_length([len(example) for example in examples], SCORED_ROWS):
            inputs = moved(collate([examples[index] for index in batch]), model.device)
            nll, rows = completion_nll(model, inputs)
            losses[batch] = row_sums(nll, rows, len(batch)).cpu().numpy()
        ends = np.cumsum([len(question.choices) for question in questions])[:-1]
        likeliest = [int(part.argmin()) for part in np.split(losses, ends)]
        right = [question.right for question in questions]
        return float(np.mean(np.equal(likeliest, right)))
