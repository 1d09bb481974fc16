"""`roadint.train`: rows in, a trained RoadModel out, resumable."""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from roadint.data.collate import Collator, Example, check_fits, tokenize
from roadint.data.prompts import check_template, check_tokenizer, pad_id
from roadint.data.sources import Source, load_rows
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.files.atomic import write_whole
from roadint.files.paths import make_folder, path_of
from roadint.grammar.composition import Composition
from roadint.model import checkpoint
from roadint.model.road_model import RoadModel
from roadint.recipes.recipe import Recipe
from roadint.training import unfinished
from roadint.training.arguments import arguments_of
from roadint.training.axes import fit_axes
from roadint.training.callbacks import show_progress
from roadint.training.constraints import Constraints
from roadint.training.prefix_cache import Kept
from roadint.training.trainer import RoadTrainer, alone, together


def train(
    road: RoadModel,
    tokenizer: Any,
    data: Mapping[str, Source] | None = None,
    recipe: str | Path | Recipe = "composition",
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    kept: Kept | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Train all subspaces of `road` at once, each data set through its own composition, and return the summary.

    data: composition → source (rows, a file, "bundled:…", "hub:…"; see roadint.data.sources); the recipe's by default.
    recipe: a preset, a YAML file or a Recipe, for the data and the optimisation; the interventions are those of `road`.
    out: where checkpoints go while it runs, and the result when it is done. resume: go on from the last checkpoint there; a run of
    the same settings and data that is done is taken up as it is.
    quiet: no progress bar. kept: keeps what prefix reuse stored for the next run, which takes it where it fits.
    overrides: single settings of the recipe, such as lr=1e-2.
    Raises RoadError for bad input, before anything is written.
    """
    if not isinstance(road, RoadModel):
        raise RoadError(
            f"{quoted(road)} is no RoadModel: expected roadint.RoadModel(model, …), or what add_linear_road returns"
        )
    check_tokenizer(tokenizer)
    if kept is not None and not isinstance(kept, Kept):
        raise RoadError(f"kept={quoted(kept)}: expected a roadint.training.trainer.Kept, or None")
    settings = Recipe.load(recipe, overrides)
    template = check_template(settings.template, tokenizer)
    given = settings.data if data is None or (isinstance(data, Mapping) and not data) else data
    examples = _tokenize_all(road, tokenizer, given, settings)
    check_fits(examples, road.model, pad_id(tokenizer))
    # A preset's companions, rates and strengths are for its own data sets and subspaces.
    lrs, strengths = (
        {
            name: each
            for name, each in getattr(settings, which).items()
            if name in road.names or which in overrides
        }
        for which in ("lrs", "strengths")
    )
    for setting, named in (("lrs", lrs), ("strengths", strengths)):
        Composition.parse(
            named if setting == "strengths" else dict.fromkeys(named, 1.0), road.names
        )
        for name in named:
            if name not in road.names:
                raise RoadError(
                    f"recipe setting {setting} names {quoted(name)}: expected one of {listing(road.names)}"
                    f"{did_you_mean(name, road.names)}"
                )
    constraints = Constraints(
        {name: rate / settings.lr for name, rate in lrs.items()},
        settings.decay,
        settings.max_log_scale,
    )
    constraints.check(road.sites)
    here = {str(example.composition) for example in examples}
    companions = {
        name: each
        for name, each in settings.companions.items()
        if name in here or "companions" in overrides
    }
    for name in companions:
        if name not in here:
            raise RoadError(
                f"companions name {quoted(name)}, which is no data set here: expected one of {listing(sorted(here))}"
            )
    together(road, companions, settings.companion_rate)
    _check_positions(road, examples)
    folder = None
    if out is not None:
        folder = path_of("out", out)
        make_folder(folder)
    first = int(os.environ.get("RANK", "0")) == 0  # of the processes that torchrun started
    last, identity = None, None
    if folder is not None:
        identity = unfinished.identity_of(road, settings, examples)
        done = unfinished.finished(folder, identity) if resume else None
        if done is not None:
            return _taken_up(road, done, ends=first)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        last = unfinished.last_checkpoint(
            folder, identity, resume=resume, processes=processes, writes=first
        )
    before = road.template
    try:
        with alone, ExitStack() as undo:
            set_seed(settings.seed)
            road.template = template
            started = time.perf_counter()
            if last is None:  # a checkpoint keeps them
                fit_axes(road, examples, Collator(tokenizer), quiet=quiet)
            scratch = Path(undo.enter_context(tempfile.TemporaryDirectory()))
            trainer = RoadTrainer(
                road,
                _arguments(
                    settings,
                    folder / checkpoint.WHILE_TRAINING if folder else scratch,
                    save=folder is not None,
                ),
                train_dataset=examples,
                data_collator=Collator(tokenizer),
                companions=companions,
                companion_rate=settings.companion_rate,
                constraints=constraints,
                prefix_reuse=settings.prefix_reuse,
                prefix_memory=None
                if settings.prefix_memory is None
                else settings.prefix_memory * 1e9,
                kept=kept,
                quiet=quiet,
            )
            show_progress(trainer, undo, quiet=quiet)
            result = trainer.train(resume_from_checkpoint=str(last) if last else None)
    except BaseException:
        road.template = before
        raise
    for site in road.sites if strengths else ():
        site.rescale(
            {name: strength for name, strength in strengths.items() if name in site.partition}
        )
    for name in road.adapters.keys() & strengths.keys():
        road.adapters[name].rescale(strengths[name])
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    road.training_summary = {
        "recipe": {**vars(settings), "data": _named(data or settings.data)},
        "rows": {
            name: sum(e.composition == name for e in examples)
            for name in dict.fromkeys(e.composition for e in examples)
        },
        "steps": int(result.global_step),
        "seconds": round(time.perf_counter() - started, 1),
        "trainable": road.trainable_count,
        "prefix_reuse": asdict(trainer.prefix_report) if trainer.prefix_report else None,
        "loss": {
            key: value
            for key, value in (history[-1] if history else {}).items()
            if key.startswith("loss")
        },
    }
    if identity is not None:
        road.training_summary["run"] = unfinished.digest_of(identity)
    if folder is not None and trainer.is_world_process_zero():
        write_whole(folder / unfinished.LOG, "".join(json.dumps(entry) + "\n" for entry in history))
        road.save_pretrained(folder)
        unfinished.finish(folder)
    return road.training_summary


def _taken_up(road: RoadModel, done: checkpoint.Checkpoint, *, ends: bool) -> dict[str, Any]:
    """The result of a run that was finished before, or killed when it only had to remove what it no longer needed."""
    unfinished.restore(road, done)
    road.template = check_template(done.config["template"])
    road.training_summary = done.config["training"]
    if ends:
        unfinished.finish(done.folder)
    return road.training_summary


def _tokenize_all(
    road: RoadModel, tokenizer: Any, data: Mapping[str, Source], recipe: Recipe
) -> list[Example]:
    if not isinstance(data, Mapping) or not data:
        what = (
            "no data given" if isinstance(data, Mapping) or data is None else f"data {quoted(data)}"
        )
        raise RoadError(
            f"{what}: expected a mapping of compositions to sources, such as {{'german': 'german.jsonl'}}"
        )
    examples = []
    for name, source in data.items():
        if not Composition.parse(name, road.names).terms:
            raise RoadError(
                f"data set {quoted(name)} trains nothing: expected a composition of {road.names}"
            )
        examples += tokenize(
            load_rows(source, recipe.rows, recipe.rows_seed),
            tokenizer,
            name,
            template=recipe.template,
            max_length=recipe.max_length,
            max_completion=recipe.max_completion,
            eos=name in recipe.eos,
        )
    return examples


def _check_positions(road: RoadModel, examples: Sequence[Example]) -> None:
    """Raises RoadError where an intervention edits a token that the prompts of its own subspaces don't have."""
    lengths: dict[str | None, int] = {}
    for example in examples:
        lengths[example.composition] = min(
            len(example.prompt), lengths.get(example.composition, len(example.prompt))
        )
    for composition, shortest in lengths.items():
        acting = {name for name, _ in Composition.parse(composition, road.names).terms}
        for site in road.sites:
            if acting & set(site.partition):
                site.position.check(torch.tensor([shortest]))


def _arguments(recipe: Recipe, folder: Path, *, save: bool) -> TrainingArguments:
    return arguments_of(
        recipe,
        folder,
        save_strategy="steps" if save else "no",
        save_steps=recipe.save_steps,
        save_total_limit=2,
        ddp_find_unused_parameters=True,  # a batch may leave a site without a subspace of its own
    )


def _named(data: Mapping[str, Source]) -> dict[str, str]:
    return {
        name: str(source) if isinstance(source, (str, Path)) else "rows in memory"
        for name, source in data.items()
    }
