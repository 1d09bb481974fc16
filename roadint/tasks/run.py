"""`roadint train` for a task: the best epoch by validation, measured once on the test rows."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from roadint.data.collate import completion_nll
from roadint.data.prompts import pad_id
from roadint.errors import RoadError
from roadint.model.pretrained import load, quietly
from roadint.model.road_model import RoadModel
from roadint.recipes.recipe import Recipe
from roadint.tasks.registry import task_of
from roadint.tasks.task import Task, check_examples, measure
from roadint.training.base_trainer import BaseTrainer, training_arguments
from roadint.training.isolation import alone, unchanged
from roadint.training.processes import is_first, meet
from roadint.training.progress_bar import progress_bar


def check_task(recipe: Recipe) -> None:
    """Check, before a model is loaded, that a recipe's task can be learned from its data.

    Args:
        recipe: The recipe, with its data; those on the hub are not looked at.

    Raises:
        RoadError: where it can't.
    """
    _check_kind(recipe)
    if "hub" not in recipe.data.sources.values():
        task_of(recipe)


def _check_kind(recipe: Recipe) -> None:
    if recipe.edit.kind != "linear":
        raise RoadError(
            f"recipe kind {recipe.edit.kind!r} with task {recipe.task.name!r}: expected kind "
            "'linear'; data sets alone train the others"
        )


def finetune(
    recipe: Recipe,
    *,
    data: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
) -> tuple[RoadModel, dict[str, Any]]:
    """Train an adapter for a recipe's task.

    Args:
        recipe: A recipe of kind "linear" with a task.
        data: "train" and "dev", or "train", "validation" and "test", or several of them as
            "test.boolq"; by default the recipe's. See roadint.tasks.glue and .questions.
        out: The folder of the checkpoint.
        quiet: Whether there is no progress bar.

    Returns:
        The RoadModel with the values of the best epoch; and the summary: the metric on validation
        rows by epoch, the metric on test rows, and where there are several sets of them their mean
        and each, steps and seconds.

    Raises:
        RoadError: for bad input, before a model is loaded.
    """
    task = task_of(recipe, data)
    _check_kind(recipe)
    set_seed(recipe.optimisation.seed)
    model, tokenizer = load_for(task, recipe)
    road = recipe.on(model)
    road.model.requires_grad_(False)
    road.template = recipe.data.template
    summary = fit(road, tokenizer, task, recipe, quiet=quiet)
    settings = recipe.record(data)
    road.training_summary = {"recipe": settings, **summary}
    if out is not None and is_first():
        road.save_pretrained(out)
    meet()
    return road, road.training_summary


def load_for(task: Task, recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model that a task needs, and its tokenizer.

    Args:
        task: The task; for a classification the model gets a new head.
        recipe: The recipe, which names the model.

    Returns:
        The model and the tokenizer, which has a padding token.

    Raises:
        RoadError: where there is no such model.
    """
    model, tokenizer = load(recipe.model.name, dtype=recipe.model.dtype, labels=task.labels)
    prepare_padding(model, tokenizer)
    return model, tokenizer


def prepare_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model and its tokenizer one padding token; the end-of-sequence token where none is.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = pad_id(tokenizer)


def fit(
    system: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    recipe: Recipe,
    *,
    quiet: bool = True,
) -> dict[str, Any]:
    """Train the parameters of a model that require gradients, and measure it.

    Args:
        system: A RoadModel, or another method's model that is called as one. Afterwards it has the
            values of the epoch with the best validation score.
        tokenizer: The tokenizer of the base model.
        task: The task.
        recipe: The recipe, for the optimisation.
        quiet: Whether there is no progress bar.

    Returns:
        The summary.

    Raises:
        RoadError: where the model can't read the task's examples.
    """
    examples, collate = task.prepare(tokenizer)
    check_examples(system, tokenizer, examples)
    started = time.perf_counter()
    with alone, quietly(), tempfile.TemporaryDirectory() as scratch, unchanged(system):
        trainer = _TaskTrainer(
            model=system,
            args=_arguments(recipe, Path(scratch)),
            train_dataset=examples,
            eval_dataset=examples[:1],
            data_collator=collate,
            score=lambda: task.score(system, tokenizer, "validation"),
        )
        if recipe.task.dropout:
            system.model.train()  # a RoadModel leaves its mode alone
        if not isinstance(recipe.optimisation.micro_batch, int):
            trainer.fit_rows()
        with progress_bar(trainer, quiet=quiet):
            result = trainer.train()
        if trainer.args.world_size > 1:  # the first process alone wrote the best epoch, and took it
            for value in trainer.trained_parameters():
                torch.distributed.broadcast(value.data, 0)
    seconds = time.perf_counter() - started
    system.eval()
    with torch.no_grad():
        tested = measure(task, system, tokenizer)
    history = trainer.state.log_history
    return {
        "task": recipe.task.name,
        "metric": task.metric,
        "rows": task.sizes(),
        "validation": [round(line["eval_score"], 4) for line in history if "eval_score" in line],
        **tested,
        "steps": int(result.global_step),
        "seconds": round(seconds, 1),
        "trainable": sum(parameter.numel() for parameter in trainer.trained_parameters()),
        "loss": {"loss": round(float(result.training_loss), 4)},
    }


def _arguments(recipe: Recipe, folder: Path) -> Any:
    return training_arguments(
        recipe,
        folder,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        save_only_model=True,  # nothing resumes from the scratch folder
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )


class _TaskTrainer(BaseTrainer):
    """Evaluates by a task's score; its loss is that of completions, or the model's own."""

    def __init__(self, *args: Any, score: Callable[[], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._score = score

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        *args: Any,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The mean over rows or tokens of the (accumulated) batch."""
        if "places" in inputs:
            nll, _ = completion_nll(model, inputs)
            mean, count = nll.mean(), len(nll)
        else:
            mean, count = model(**inputs).loss, len(inputs["labels"])
        if num_items_in_batch is None:
            return mean
        # The count is that of all processes, whose gradients are averaged.
        everywhere = self.args.average_tokens_across_devices
        processes = self.accelerator.num_processes if everywhere else 1
        return mean * count * processes / num_items_in_batch

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The score on the validation rows."""
        base, training = self.model.model, self.model.model.training
        base.eval()
        self.model.eval()
        metrics = {"eval_score": self._score()}
        base.train(training)
        self.model.train()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics
