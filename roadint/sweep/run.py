"""Running a sweep, sequentially or through Ray, resumable; the result is a table."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from roadint.data.prompt_files import read_prompts
from roadint.errors import RoadError, check_known, first_line
from roadint.evaluation.evaluate import evaluate
from roadint.files.atomic import hold, write_whole
from roadint.model.pretrained import load
from roadint.recipes.recipe import Recipe
from roadint.sweep.plan import Changes, Plan, key
from roadint.tasks.run import finetune
from roadint.training.prefix.sharing import SharedPrefix
from roadint.training.run import train

logger = logging.getLogger(__name__)
Engine = Literal["sequential", "ray"]
Entry = dict[str, Any]  # a line of the table
TABLE = "runs.jsonl"
LOCK = ".lock"  # which a sweep holds while it runs


def sweep(
    plan: str | Path | Plan,
    out: str | Path,
    *,
    engine: Engine = "sequential",
    workers: int | None = None,
    quiet: bool = False,
) -> list[Entry]:
    """Train and measure every run of a plan.

    Args:
        plan: A plan, the YAML file of one, or a recipe.
        out: The folder of the table (runs.jsonl, a line a run) and of the checkpoints. Runs in the
            table are not repeated, and an interrupted one continues.
        engine: "sequential", where runs share what prefix reuse stores; or "ray", on all GPUs of a
            Ray cluster, or in `workers` processes.
        workers: The number of processes with Ray; one a GPU by default.
        quiet: Whether there are no progress bars.

    Returns:
        The table in the order of the plan. A failed run has an "error"; the next call tries it
        again.

    Raises:
        RoadError: where the plan does not fit, `out` has another plan's table, or another sweep
            writes to it.
    """
    check_known("engine", engine, get_args(Engine))
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    if workers is not None and engine != "ray":
        raise RoadError(f"workers={workers}: runs go one after another without engine='ray'")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as lock:
        hold(lock)
        return _sweep(chosen, out, engine, workers, quiet=quiet)


def _sweep(
    chosen: Plan, out: Path, engine: Engine, workers: int | None, *, quiet: bool
) -> list[Entry]:
    entries = _open_table(chosen, out)
    runs = chosen.runs()
    left = [changes for changes in runs if "error" in entries.get(key(changes), {"error": None})]
    todo = chosen.neighbours(left)
    logger.info("%d runs, %d of them done", len(runs), len(runs) - len(todo))
    if engine == "ray":
        results = _through_ray(chosen, out, todo, workers)
    else:
        runner = Runner(chosen, out, quiet=quiet)
        results = (runner.run(changes) for changes in todo)
    with (out / TABLE).open("a", encoding="utf-8") as table:
        for entry in results:
            table.write(json.dumps(entry, ensure_ascii=False) + "\n")
            table.flush()
            entries[entry["run"]] = entry
            said = entry.get("error") or f"{entry['seconds']:.0f} s"
            logger.info("%s %s", entry["settings"], said)
    return [entries[key(changes)] for changes in runs]


class Runner:
    """Runs of a plan in one process, which share the base model and what prefix reuse stores.

    Args:
        plan: The plan.
        out: The folder of the checkpoints.
        quiet: Whether there are no progress bars.
    """

    def __init__(self, plan: Plan, out: Path, *, quiet: bool = True) -> None:
        self._plan, self._out, self._quiet = plan, out, quiet
        self._prefix = SharedPrefix()
        self._loaded: tuple[tuple[str, str], Any] | None = None

    def run(self, changes: Changes) -> Entry:
        """Train and measure one run.

        Args:
            changes: The settings of the run.

        Returns:
            The run's entry of the table. What the run raises becomes its "error".
        """
        entry: Entry = {"run": key(changes), "settings": changes}
        try:
            return entry | self._measured(changes)
        except RoadError as error:
            return {**entry, "error": str(error)}
        except Exception as error:  # any; out of memory may be the cache's fault
            self._prefix.cache = None
            logger.warning("%s failed", changes, exc_info=True)
            return {**entry, "error": f"{type(error).__name__}: {first_line(error)}"}

    def _measured(self, changes: Changes) -> Entry:
        started = time.perf_counter()
        recipe = self._plan.recipe_of(changes)
        part = self._of_task if recipe.task.name else self._of_data_sets
        figures = part(recipe, self._out / key(changes))
        return {"seconds": round(time.perf_counter() - started, 1), **figures}

    def _of_task(self, recipe: Recipe, out: Path) -> Entry:
        self._loaded = self._prefix.cache = None  # the task loads a model of its own
        _, summary = finetune(recipe, out=out, quiet=self._quiet)
        del summary["recipe"]
        seconds = summary.pop("seconds")
        return {**summary, "training_seconds": seconds}

    def _of_data_sets(self, recipe: Recipe, out: Path) -> Entry:
        plan = self._plan
        model, tokenizer = self._load(recipe)
        road = recipe.on(model)
        summary = train(
            road,
            tokenizer,
            None,
            recipe,
            out=out,
            resume=True,
            quiet=self._quiet,
            shared_prefix=self._prefix,
        )
        report = evaluate(
            road,
            tokenizer,
            plan.data,
            read_prompts(plan.prompts, plan.max_prompts),
            compose=plan.compose,
            rows=plan.rows,
            expect=plan.expect,
            max_new_tokens=plan.max_new_tokens,
            quiet=self._quiet,
        )
        return {
            "trainable": summary["trainable"],
            "loss": summary["loss"],
            "training_seconds": summary["seconds"],
            **report.measures(),
        }

    def _load(self, recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model and its tokenizer; those of the run before where they are the same."""
        wanted = (recipe.model.name, recipe.model.dtype)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = self._prefix.cache = None  # two models may not fit
            self._loaded = (wanted, load(recipe.model.name, dtype=recipe.model.dtype))
        return self._loaded[1]


def _through_ray(
    plan: Plan, out: Path, todo: Sequence[Changes], workers: int | None
) -> Iterator[Entry]:
    """The runs through Ray, with a Runner in every process."""
    try:
        import ray
    except ImportError:
        raise RoadError("engine 'ray' needs the package ray: pip install 'roadint[ray]'") from None
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    count, room = _shares(ray.cluster_resources(), workers)
    remote = ray.remote(**room, max_restarts=-1)(Runner)
    idle = [remote.remote(plan, out.resolve()) for _ in range(min(count, len(todo)))]
    waiting = list(reversed(todo))
    running: dict[Any, tuple[Any, Changes]] = {}
    while waiting or running:
        while waiting and idle:
            runner, changes = idle.pop(), waiting.pop()
            running[runner.run.remote(changes)] = runner, changes
        (done,), _ = ray.wait(list(running))
        runner, changes = running.pop(done)
        idle.append(runner)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:  # its process was killed, and starts again
            yield {"run": key(changes), "settings": changes, "error": first_line(error)}


def _shares(have: Mapping[str, float], workers: int | None) -> tuple[int, dict[str, Any]]:
    """The number of processes, and the resources of one, so that all of them fit the cluster."""
    if have.get("GPU"):
        gpus = int(have["GPU"])
        return min(workers or gpus, gpus), {"num_cpus": 1, "num_gpus": 1}
    count = workers or 1
    share = have["CPU"] / count
    return count, {"num_cpus": int(share) if share >= 1 else math.floor(100 * share) / 100}


def _open_table(plan: Plan, out: Path) -> dict[str, Entry]:
    """The entries of the table, by run; a line that a kill cut short is dropped."""
    _check_plan(plan, out / "plan.json")
    entries = {}
    for line in (out / TABLE).read_bytes().splitlines() if (out / TABLE).is_file() else ():
        try:
            entry = json.loads(line.decode())
        except (ValueError, RecursionError):  # a kill may cut a line anywhere, inside a letter too
            continue
        if isinstance(entry, dict) and isinstance(entry.get("run"), str):
            entries[entry["run"]] = entry
    whole = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries.values())
    write_whole(out / TABLE, whole)
    return entries


def _check_plan(plan: Plan, file: Path) -> None:
    """Save the plan, without what it varies; raises RoadError where another plan is saved."""
    noted = json.loads(json.dumps({**plan.model_dump(exclude={"over"}), **plan.read()}))
    try:
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else noted
    except (ValueError, RecursionError):
        raise RoadError(
            f"{file} is damaged, so nothing says whose {TABLE} is: choose another folder, or "
            "remove it"
        ) from None
    if before != noted:
        raise RoadError(
            f"{file.parent} holds a sweep that differs in more than what it varies: choose another "
            "folder"
        )
    write_whole(file, json.dumps(noted, indent=2) + "\n")
