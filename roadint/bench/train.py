"""`roadint bench train`: the same job through roadint, through pyvene, and through the bare model, in turns."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from roadint.bench.measure import case, ratio
from roadint.bench.systems import SYSTEMS, Job
from roadint.bench.workers import Worker, in_turns, workers
from roadint.errors import RoadError
from roadint.progress import track


def bench_train(
    job: Job,
    systems: Sequence[str],
    *,
    steps: int | None = 20,
    scaling: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure; see the module. steps: how many of the job's steps, evenly over an epoch; None for the whole job, all epochs.

    Returns {"machine", "job", "cases", "ratios"}. Raises RoadError where the systems' losses disagree, or one fails.
    """
    makes = {name: SYSTEMS[name] for name in systems}
    cases: list[dict[str, Any]] = []
    with workers(makes, job) as each:
        prepared = {worker.name: worker.ask("prepare") for worker in each}
        about = each[0].ask("machine")
        epoch = next(iter(prepared.values()))["steps"]
        total = epoch * job.epochs
        numbers = (
            list(range(total))
            if steps is None
            else [round(index * epoch / steps) for index in range(min(steps, epoch))]
        )
        times = _run(each, numbers, quiet)
        for worker in each:
            seconds, before = times[worker.name], prepared[worker.name]["seconds"]
            peak = worker.ask("peak")
            more = {}
            if worker.name.startswith("roadint"):
                flops = [worker.ask("flops", number) for number in numbers]
                more = {
                    "matmul_fraction": round(
                        sum(flops) / sum(seconds) / (about["matmul_gflops"] * 1e9), 3
                    )
                }
            cases.append(
                case("step", worker.name, seconds, peak, mean_s=round(fmean(seconds), 5), **more)
            )
            whole = before + fmean(seconds) * total
            about_whole = {
                "steps": total,
                "preparation_s": round(before, 2),
                "measured_steps": len(numbers),
            }
            cases.append(case("whole job", worker.name, [whole], peak, **about_whole))
        if scaling:
            cases += _scaling(each, quiet)
    return {
        "machine": about,
        "job": {**vars(job), "data": dict(job.data)},
        "cases": cases,
        "ratios": _ratios(cases),
    }


def _run(each: list[Worker], numbers: Sequence[int], quiet: bool) -> dict[str, list[float]]:
    """The steps, all systems in turns. The first is done twice, and its first time not counted."""
    times: dict[str, list[float]] = {worker.name: [] for worker in each}
    losses = {worker.name: worker.ask("step", numbers[0])[1] for worker in each}
    for name, loss in losses.items():
        if abs(loss - losses[each[0].name]) > 0.02 * loss:
            raise RoadError(
                f"{name} starts at a loss of {loss:.4f}, {each[0].name} at {losses[each[0].name]:.4f}: not the same job"
            )
    for index, number in enumerate(track(numbers, len(numbers), "steps", quiet=quiet)):
        for worker in in_turns(each, index):
            times[worker.name].append(worker.ask("step", number)[0])
    return times


_BASE = {"prompt": 128, "completion": 32, "rows": 8, "compositions": 2}
_CURVES: dict[str, Sequence[int]] = {
    "prompt": (32, 128, 480),
    "completion": (8, 32, 128),
    "rows": (2, 8, 16),
    "compositions": (1, 2, 8),
}


def _scaling(each: list[Worker], quiet: bool, runs: int = 3) -> list[dict[str, Any]]:
    """Step times of rows of random tokens along one axis at a time."""
    points = [(axis, value) for axis, values in _CURVES.items() for value in values]
    cases, known = [], {}
    for axis, value in track(points, len(points), "scaling", quiet=quiet):
        shape = {**_BASE, axis: value}
        key = tuple(shape.items())
        if key not in known:
            for worker in each:
                worker.ask("prepare", shape)
            known[key] = _run(each, [0] * runs, quiet=True)
        for worker in each:
            cases.append(
                case(f"step by {axis}", worker.name, known[key][worker.name], None, **{axis: value})
            )
    return cases


def _ratios(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ratios = []
    for ours in (
        each
        for each in cases
        if each["system"] == "roadint" and not each["name"].startswith("step by")
    ):
        for theirs in cases:
            if theirs["name"] == ours["name"] and theirs["system"] != "roadint":
                key = "mean_s" if "mean_s" in ours else "median_s"
                ratios.append(ratio(ours["name"], theirs["system"], theirs[key], ours[key]))
    return ratios
