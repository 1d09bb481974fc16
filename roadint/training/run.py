"""`roadint.train`: rows in, a trained RoadModel out, resumable."""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainingArguments,
    set_seed,
)

from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.format import WHILE_TRAINING
from roadint.checkpoint.reading import read
from roadint.data.prompts import check_template, check_tokenizer
from roadint.data.sources import DataSource
from roadint.errors import RoadError, quoted
from roadint.files.atomic import write_whole
from roadint.files.paths import make_folder, path_of
from roadint.model.pretrained import quietly
from roadint.model.road_model import RoadModel
from roadint.recipes.names import nested
from roadint.recipes.recipe import Recipe
from roadint.training import run_folder
from roadint.training.axes import fit_axes
from roadint.training.base_trainer import training_arguments
from roadint.training.isolation import alone
from roadint.training.prefix.sharing import SharedPrefix
from roadint.training.preparation import PreparedRun, prepare
from roadint.training.processes import is_first, meet
from roadint.training.progress_bar import progress_bar
from roadint.training.trainer import RoadTrainer


def train(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    data: Mapping[str, DataSource] | None = None,
    recipe: str | Path | Recipe = "composition",
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    shared_prefix: SharedPrefix | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Train all subspaces of a RoadModel at once, each data set through its own composition.

    Args:
        road: The model, whose interventions and adapters learn in place; the base model does not.
        tokenizer: The base model's tokenizer, or its processor where rows have images
            (images=True).
        data: Composition → source (rows, a file, "bundled:…", "hub:…"; see roadint.data.sources,
            and roadint.data.image_text for rows with images); the recipe's by default.
        recipe: A preset, a YAML file or a Recipe, for data and optimisation; the interventions are
            those of `road`.
        out: A folder, for checkpoints during the run, and for the result.
        resume: Continue from the last checkpoint in `out`. The result of a finished run with the
            same settings and data is loaded.
        quiet: Whether there is no progress bar.
        shared_prefix: Lets the next run use what prefix reuse stored in this one, where it fits.
        overrides: Settings of the recipe, such as lr=1e-2.

    Returns:
        The summary, also `road.training_summary`: "recipe", "rows" of each composition, "steps",
        "micro_batch" (rows that ran at once), "seconds", "trainable" (how many numbers trained),
        "prefix_reuse" and "loss", the last in the log, in nats a token.

    Raises:
        RoadError: for bad input, before anything is written.
    """
    if not isinstance(road, RoadModel):
        raise RoadError(
            f"{quoted(road)} is no RoadModel: expected roadint.RoadModel(model, …), or what "
            "add_linear_road returns"
        )
    check_tokenizer(tokenizer)
    if shared_prefix is not None and not isinstance(shared_prefix, SharedPrefix):
        raise RoadError(
            f"shared_prefix={quoted(shared_prefix)}: expected a "
            "roadint.training.prefix.sharing.SharedPrefix, or None"
        )
    chosen = [setting for section in nested(overrides).values() for setting in section]
    run = prepare(road, tokenizer, data, Recipe.load(recipe, overrides), chosen)
    if out is None:
        _learn(road, run, quiet=quiet, shared_prefix=shared_prefix)
        return road.training_summary
    folder = path_of("out", out)
    make_folder(folder)
    writes = is_first()
    identity = run_folder.identity_of(road, run.recipe, run.examples)
    done = run_folder.finished(folder, identity) if resume else None
    if done is not None:
        return _take_up(road, done, ends=writes)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    last = run_folder.last_checkpoint(
        folder, identity, resume=resume, processes=processes, writes=writes
    )
    trainer = _learn(road, run, folder, last, quiet=quiet, shared_prefix=shared_prefix)
    road.training_summary["run"] = run_folder.digest_of(identity)
    if writes:
        lines = [json.dumps(entry) + "\n" for entry in _losses(trainer)]
        write_whole(folder / run_folder.LOG, "".join(lines))
        road.save_pretrained(folder)
        run_folder.finish(folder)
    meet()
    return road.training_summary


def _take_up(road: RoadModel, done: Checkpoint, *, ends: bool) -> dict[str, Any]:
    """Load the result of a finished run, or of one that was killed while it removed checkpoints."""
    run_folder.restore(road, done)
    road.template = check_template(done.config["template"])
    road.training_summary = done.config["training"]
    if ends:
        run_folder.finish(done.folder)
    return road.training_summary


def _learn(
    road: RoadModel,
    run: PreparedRun,
    folder: Path | None = None,
    last: Path | None = None,
    *,
    quiet: bool,
    shared_prefix: SharedPrefix | None,
) -> RoadTrainer:
    """Train, with checkpoints in `folder`, from the checkpoint `last`."""
    before, recipe, collator = road.template, run.recipe, run.collator
    memory = recipe.optimisation.prefix_memory  # GB
    try:
        with alone, quietly(), tempfile.TemporaryDirectory() as scratch:
            set_seed(recipe.optimisation.seed)
            road.template = run.template
            started = time.perf_counter()
            if last is None:
                fit_axes(road, run.examples, collator, quiet=quiet)
            else:  # which has axes; what is counted before the training runs with its values
                run_folder.restore(road, read(last))
            trainer = RoadTrainer(
                road,
                _arguments(recipe, folder, Path(scratch)),
                train_dataset=run.examples,
                data_collator=collator,
                companions=run.companions,
                companion_rate=recipe.data.companion_rate,
                constraints=run.constraints,
                prefix_reuse=recipe.optimisation.prefix_reuse,
                prefix_memory=None if memory is None else memory * 1e9,
                shared_prefix=shared_prefix,
                compile=recipe.optimisation.compile,
                quiet=quiet,
            )
            if not isinstance(recipe.optimisation.micro_batch, int):
                trainer.fit_rows()
            with progress_bar(trainer, quiet=quiet):
                trainer.train(resume_from_checkpoint=str(last) if last else None)
    except BaseException:
        road.template = before
        raise
    _rescale(road, run.strengths)
    seconds = round(time.perf_counter() - started, 1)
    road.training_summary = {**_summary(road, run, trainer), "seconds": seconds}
    return trainer


def _rescale(road: RoadModel, strengths: Mapping[str, float]) -> None:
    """Make a strength of every named subspace or adapter the new strength 1."""
    if not strengths:
        return
    for edit in road.interventions:
        edit.rescale({name: value for name, value in strengths.items() if name in edit.partition})
    for name in road.adapters.keys() & strengths.keys():
        road.adapters[name].rescale(strengths[name])


def _arguments(recipe: Recipe, folder: Path | None, scratch: Path) -> TrainingArguments:
    return training_arguments(
        recipe,
        scratch if folder is None else folder / WHILE_TRAINING,
        save_strategy="no" if folder is None else "steps",
        save_steps=recipe.optimisation.save_steps,
        save_total_limit=2,
        ddp_find_unused_parameters=True,  # in a batch an intervention may not act
    )


def _summary(road: RoadModel, run: PreparedRun, trainer: RoadTrainer) -> dict[str, Any]:
    report, losses = trainer.prefix_report, _losses(trainer)
    last = losses[-1] if losses else {}
    rows: dict[str | None, int] = {}
    for example in run.examples:
        rows[example.composition] = rows.get(example.composition, 0) + 1
    return {
        "recipe": run.recipe.record(run.sources),
        "rows": rows,
        "steps": int(trainer.state.global_step),
        "micro_batch": trainer.args.per_device_train_batch_size,
        "trainable": road.trainable_count,
        "prefix_reuse": asdict(report) if report else None,
        "loss": {name: value for name, value in last.items() if name.startswith("loss")},
    }


def _losses(trainer: RoadTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]
