"""`roadint.sweep`: every run of a plan, one after the other or through Ray, resumable; the table is its one result."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from roadint.data.sources import load_prompts
from roadint.errors import RoadError, check_known, first_line
from roadint.evaluation.report import evaluate
from roadint.files.atomic import write_whole
from roadint.model.pretrained import load
from roadint.sweep.plan import Plan, Settings, key
from roadint.training.prefix_cache import Kept
from roadint.training.run import train

logger = logging.getLogger(__name__)
Engine = Literal["sequential", "ray"]
TABLE = "runs.jsonl"
_kept = Kept()  # the prefix that runs of one process share


def sweep(
    plan: str | Plan,
    out: str | Path,
    *,
    engine: Engine = "sequential",
    workers: int | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train and measure every run of a plan; returns the table's rows, in the order of the plan.

    out: the folder of the table (runs.jsonl, a row a run) and of the checkpoints. Runs that the table has are not done again, one
    that was cut short goes on. A run that fails is a row with its "error", tried again by the next call.
    engine: "sequential", where runs share what prefix reuse stores, or "ray": on all GPUs of a Ray cluster, or `workers` processes.
    Raises RoadError for a plan that does not fit, or another plan's table in `out`.
    """
    check_known("engine", engine, get_args(Engine))
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    out = Path(out)
    rows = _open_table(chosen, out)
    runs = chosen.runs()
    todo = [settings for settings in runs if "error" in rows.get(key(settings), {"error": None})]
    logger.info("%d runs, %d of them done", len(runs), len(runs) - len(todo))
    results = (
        _through_ray(chosen, out, todo, workers)
        if engine == "ray"
        else _in_turn(chosen, out, todo, quiet)
    )
    with (out / TABLE).open("a", encoding="utf-8") as table:
        for row in results:
            table.write(json.dumps(row, ensure_ascii=False) + "\n")
            table.flush()
            rows[row["run"]] = row
            logger.info("%s %s", row["settings"], row.get("error") or f"{row['seconds']:.0f} s")
    return [rows[key(settings)] for settings in runs]


def one_run(plan: Plan, out: Path, settings: Settings, quiet: bool = True) -> dict[str, Any]:
    """Train and measure one run: its row of the table. What it raises becomes the row's "error", which ends no other run."""
    started = time.perf_counter()
    row: dict[str, Any] = {"run": key(settings), "settings": settings}
    try:
        recipe = plan.recipe_of(settings)
        base, tokenizer = _base(recipe.model, recipe.dtype)
        road = recipe.on(base)
        summary = train(
            road,
            tokenizer,
            None,
            recipe,
            out=out / key(settings),
            resume=True,
            quiet=quiet,
            kept=_kept,
        )
        report = evaluate(
            road,
            tokenizer,
            plan.data,
            load_prompts(plan.prompts, plan.max_prompts),
            compose=plan.compose,
            rows=plan.rows,
            language=plan.language,
            max_new_tokens=plan.max_new_tokens,
            quiet=quiet,
        )
    except RoadError as error:
        return {**row, "error": str(error)}
    except (
        Exception
    ) as error:  # out of memory, say: what is kept for the runs to share may be what takes it
        _kept.cache = None
        logger.warning("%s failed", row["settings"], exc_info=True)
        return {**row, "error": f"{type(error).__name__}: {first_line(error)}"}
    figures = ("nll", "language", "shares", "kl", "gain", "interference")
    row |= {
        "trainable": summary["trainable"],
        "loss": summary["loss"],
        "training_seconds": summary["seconds"],
    }
    return {
        **row,
        "seconds": round(time.perf_counter() - started, 1),
        **{name: report[name] for name in figures},
    }


@lru_cache(maxsize=1)
def _base(model: str, dtype: str) -> tuple[Any, Any]:
    return load(model, dtype=dtype)


def _in_turn(
    plan: Plan, out: Path, todo: Sequence[Settings], quiet: bool
) -> Iterator[dict[str, Any]]:
    for settings in todo:
        yield one_run(plan, out, settings, quiet)


def _through_ray(
    plan: Plan, out: Path, todo: Sequence[Settings], workers: int | None
) -> Iterator[dict[str, Any]]:
    try:
        import ray
    except ImportError:
        raise RoadError("engine 'ray' needs the package ray: pip install 'roadint[ray]'") from None
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    have = ray.cluster_resources()
    gpus = 1 if have.get("GPU") else 0
    at_once = workers or int(have["GPU"] if gpus else 1)
    remote = ray.remote(num_cpus=have["CPU"] / at_once if not gpus else 1, num_gpus=gpus)(one_run)
    waiting = {remote.remote(plan, out.resolve(), settings): settings for settings in todo}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        settings = waiting.pop(done)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:  # a worker that was killed, or ran out of memory
            yield {"run": key(settings), "settings": settings, "error": first_line(error)}


def _open_table(plan: Plan, out: Path) -> dict[str, dict[str, Any]]:
    """The rows that are done, by run; a last line that a kill cut short is dropped. Raises RoadError for another plan's table."""
    out.mkdir(parents=True, exist_ok=True)
    said = json.loads(
        json.dumps({name: value for name, value in asdict(plan).items() if name != "over"})
    )
    file = out / "plan.json"
    try:
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else said
    except (ValueError, RecursionError):
        raise RoadError(
            f"{file} is damaged, so nothing says whose {TABLE} is: choose another folder, or remove it"
        ) from None
    if before != said:
        raise RoadError(
            f"{out} holds a sweep that differs in more than what it varies: choose another folder"
        )
    write_whole(file, json.dumps(said, indent=2) + "\n")
    rows = {}
    for line in (out / TABLE).read_bytes().splitlines() if (out / TABLE).is_file() else ():
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):  # a kill may cut a line anywhere, inside a letter too
            continue
        if isinstance(row, dict) and isinstance(row.get("run"), str):
            rows[row["run"]] = row
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
    write_whole(out / TABLE, whole)
    return rows
