"""`roadint train` for a task: the best epoch by validation, measured once on the test rows."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, set_seed

from roadint.data.collate import completion_nll
from roadint.data.prompts import pad_id
from roadint.errors import RoadError
from roadint.model.pretrained import load
from roadint.model.road_model import RoadModel
from roadint.recipes.recipe import Recipe
from roadint.tasks.jobs import Job, check_examples, job_of
from roadint.training.arguments import arguments_of
from roadint.training.callbacks import show_progress
from roadint.training.trainer import alone, unchanged


def finetune(
    recipe: Recipe,
    *,
    data: dict[str, str] | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
) -> tuple[RoadModel, dict[str, Any]]:
    """Train an adapter for a recipe's task; returns the RoadModel, with the values of the best epoch, and the summary.

    data: "train" and "dev", or "validation" and "test", instead of the recipe's; see roadint.tasks.glue and .reasoning.
    out: where the checkpoint goes. The summary holds the metric on the validation rows, by epoch, and on the test rows.
    Raises RoadError for bad input, before a model is loaded.
    """
    job = job_of(recipe, data)
    if recipe.edit.kind != "linear":
        raise RoadError(
            f"recipe kind {recipe.edit.kind!r} with task {recipe.task.name!r}: expected kind 'linear'; data sets alone train the others"
        )
    set_seed(recipe.optimisation.seed)
    model, tokenizer = load_for(job, recipe)
    road = recipe.on(model)
    road.model.requires_grad_(False)
    road.template = recipe.data.template
    summary = fit(road, tokenizer, job, recipe, quiet=quiet)
    road.training_summary = {
        "recipe": recipe.record(data),
        **summary,
    }
    if out is not None:
        road.save_pretrained(out)
    return road, road.training_summary


def load_for(job: Job, recipe: Recipe) -> tuple[Any, Any]:
    """The base model that a job needs, a classifier with a new head or a language model, and its tokenizer."""
    model, tokenizer = load(recipe.model.name, dtype=recipe.model.dtype, labels=job.labels)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = pad_id(tokenizer)
    return model, tokenizer


def fit(
    system: Any, tokenizer: Any, job: Job, recipe: Recipe, *, quiet: bool = True
) -> dict[str, Any]:
    """Train what asks for gradients in `system`, a RoadModel or another method's model of the same surface; returns the figures.

    The values of the epoch with the best validation score are in the system afterwards.
    """
    examples, collate = job.prepare(tokenizer)
    check_examples(system, tokenizer, examples)
    started = time.perf_counter()
    with alone, ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        if isinstance(system, RoadModel):
            undo.enter_context(unchanged(system))
        trainer = _TaskTrainer(
            model=system,
            args=arguments_of(
                recipe,
                scratch,
                eval_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model="score",
                greater_is_better=True,
            ),
            train_dataset=examples,
            eval_dataset=examples[:1],
            data_collator=collate,
            score=lambda: job.score(system, tokenizer, "validation"),
        )
        show_progress(trainer, undo, quiet=quiet)
        result = trainer.train()
        epochs = [
            round(entry["eval_score"], 4)
            for entry in trainer.state.log_history
            if "eval_score" in entry
        ]
    seconds = time.perf_counter() - started
    system.eval()
    with torch.no_grad():
        test = job.score(system, tokenizer, "test")
    return {
        "task": recipe.task.name,
        "metric": job.metric,
        "rows": job.sizes(),
        "validation": epochs,
        "test": round(test, 4),
        "steps": int(result.global_step),
        "seconds": round(seconds, 1),
        "trainable": sum(each.numel() for each in system.parameters() if each.requires_grad),
        "loss": {"loss": round(float(result.training_loss), 4)},
    }


class _TaskTrainer(Trainer):
    """Trainer whose evaluation is a task's own score, and whose loss is the completions' alone where there are some."""

    model: Any  # a RoadModel, or a rival's; Trainer knows only PreTrainedModels

    def __init__(self, *args: Any, score: Callable[[], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._score = score
        self.model_accepts_loss_kwargs = True  # num_items_in_batch is ours to use
        self._loss_shifts_labels = (
            False  # the labels are those of completions, or of rows: all of them count
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        *args: Any,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """A mean over rows, or over the tokens of the (accumulated) batch."""
        if "places" not in inputs:
            loss = model(**inputs).loss
            return (
                loss
                if num_items_in_batch is None
                else loss * len(inputs["labels"]) / num_items_in_batch
            )
        nll, _ = completion_nll(model, inputs)
        return nll.mean() if num_items_in_batch is None else nll.sum() / num_items_in_batch

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The chosen optimizer (AdamW) without weight decay: it would pull α to 0."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            asking = [each for each in self.model.parameters() if each.requires_grad]
            self.optimizer = kind(asking, **{**settings, "weight_decay": 0.0})
        return self.optimizer

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The score on the validation rows."""
        self.model.eval()
        metrics = {"eval_score": self._score()}
        self.model.train()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics
