"""`roadint.train`: rows in, a trained RoadModel out, resumable."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from roadint import checkpoint
from roadint.composition import Composition, CompositionLike
from roadint.data.collate import Collator, Example, check_fits, tokenize
from roadint.data.sources import Source, load_rows
from roadint.errors import RoadError
from roadint.model import RoadModel
from roadint.plain import plain
from roadint.prompt import check_template, pad_id
from roadint.training.arguments import arguments_of
from roadint.training.axes import fit_axes
from roadint.training.constraints import Constraints
from roadint.training.prefix_cache import Kept
from roadint.training.progress import ProgressBar
from roadint.training.recipe import Recipe
from roadint.training.trainer import RoadTrainer


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
    out: where checkpoints go while it runs, and the result when it is done. resume: go on from the last checkpoint there.
    quiet: no progress bar. kept: keeps what prefix reuse stored for the next run, which takes it where it fits.
    overrides: single settings of the recipe, such as lr=1e-2.
    Raises RoadError for bad input, before anything is written.
    """
    settings = Recipe.load(recipe, overrides)
    template = check_template(settings.template, tokenizer)
    examples = _tokenize_all(road, tokenizer, data or settings.data, settings)
    check_fits(examples, road.model, pad_id(tokenizer))
    # A preset's companions, rates and strengths are for its own data sets and subspaces.
    rates = {name: rate / settings.lr for name, rate in settings.lrs.items() if name in road.names or "lrs" in overrides}
    strengths = {name: each for name, each in settings.strengths.items() if name in road.names or "strengths" in overrides}
    companions = {name: each for name, each in settings.companions.items() if name in (data or settings.data)}
    acting: list[CompositionLike] = [
        dict.fromkeys(rates, 1.0),
        strengths,
        *(each for several in companions.values() for each in several),
    ]
    for each in acting:
        Composition.parse(each, road.names)
    folder = Path(out) if out is not None else None
    last = None
    if folder is not None:
        last = _last_checkpoint(folder / checkpoint.WHILE_TRAINING, _fingerprint(road, settings, examples), resume)
    set_seed(settings.seed)
    road.template = template
    started = time.perf_counter()
    if last is None:  # a checkpoint keeps them
        fit_axes(road, examples, Collator(tokenizer), quiet=quiet)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RoadTrainer(
            road,
            _arguments(settings, folder / checkpoint.WHILE_TRAINING if folder else Path(scratch), save=folder is not None),
            train_dataset=examples,
            data_collator=Collator(tokenizer),
            companions=companions,
            companion_rate=settings.companion_rate,
            constraints=Constraints(rates, settings.decay, settings.max_log_scale),
            prefix_reuse=settings.prefix_reuse,
            prefix_memory=None if settings.prefix_memory is None else settings.prefix_memory * 1e9,
            kept=kept,
            quiet=quiet,
        )
        for printing in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printing)
        if not quiet:
            trainer.add_callback(ProgressBar())
        result = trainer.train(resume_from_checkpoint=str(last) if last else None)
        for site in road.sites if strengths else ():
            site.rescale({name: strength for name, strength in strengths.items() if name in site.partition})
        for name in road.adapters.keys() & strengths.keys():
            road.adapters[name].rescale(strengths[name])
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
    road.training_summary = {
        "recipe": {**vars(settings), "data": _named(data or settings.data)},
        "rows": {name: sum(e.composition == name for e in examples) for name in dict.fromkeys(e.composition for e in examples)},
        "steps": int(result.global_step),
        "seconds": round(time.perf_counter() - started, 1),
        "trainable": road.trainable_count,
        "prefix_reuse": asdict(trainer.prefix_report) if trainer.prefix_report else None,
        "loss": {key: value for key, value in (history[-1] if history else {}).items() if key.startswith("loss")},
    }
    if folder is not None and trainer.is_world_process_zero():
        road.save_pretrained(folder)
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")
        shutil.rmtree(folder / checkpoint.WHILE_TRAINING, ignore_errors=True)
    return road.training_summary


def _tokenize_all(road: RoadModel, tokenizer: Any, data: Mapping[str, Source], recipe: Recipe) -> list[Example]:
    if not data:
        raise RoadError("no data given: expected a mapping of compositions to sources, such as {'german': 'german.jsonl'}")
    examples = []
    for name, source in data.items():
        if not Composition.parse(name, road.names).terms:
            raise RoadError(f"data set {name!r} trains nothing: expected a composition of {road.names}")
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


def _arguments(recipe: Recipe, folder: Path, *, save: bool) -> TrainingArguments:
    return arguments_of(
        recipe,
        folder,
        save_strategy="steps" if save else "no",
        save_steps=recipe.save_steps,
        save_total_limit=2,
        ddp_find_unused_parameters=True,  # a batch may leave a site without a subspace of its own
    )


def _fingerprint(road: RoadModel, recipe: Recipe, examples: list[Example]) -> dict[str, Any]:
    """What must be the same for a run to go on: the optimisation, the sites and the data."""
    how = ("data", "save_steps", "prefix_reuse", "prefix_memory")  # the result does not depend on these, or the rest tells
    settings = {name: value for name, value in vars(recipe).items() if name not in how}
    sites = [*(each.spec() for each in road.sites), *(each.spec() for each in road.adapters.values())]
    return dict(plain({"settings": settings, "sites": sites, "tokens": [sum(map(len, examples)), len(examples)]}))


def _last_checkpoint(folder: Path, identity: dict[str, Any], resume: bool) -> Path | None:
    """The last complete checkpoint of the same run; a kill may have left a later one half-written."""
    identity_file = folder / "run.json"
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if found and not resume:
        raise RoadError(f"{folder.parent} holds an unfinished run: add --resume (resume=True) to go on, or remove the folder")
    if found:
        before = json.loads(identity_file.read_text(encoding="utf-8")) if identity_file.is_file() else None
        if before != json.loads(json.dumps(identity)):
            raise RoadError(f"the unfinished run in {folder.parent} has other settings or data: expected the same to resume it")
    for path in reversed(found):
        if _complete(path):
            return path
        shutil.rmtree(path)
    folder.mkdir(parents=True, exist_ok=True)
    identity_file.write_text(json.dumps(identity), encoding="utf-8")
    return None


def _complete(path: Path) -> bool:
    try:
        checkpoint.read(path)
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # what Trainer writes last
    except (RoadError, OSError, json.JSONDecodeError):
        return False
    return True


def _named(data: Mapping[str, Source]) -> dict[str, str]:
    return {name: str(source) if isinstance(source, (str, Path)) else "rows in memory" for name, source in data.items()}
