"""`roadint bench train`: one training job through roadint, pyvene and the bare model, in turns.

It measures the wall-clock time of an optimizer step on the same rows, with a process for every
system. "whole job" is the mean time of a step times all steps, plus what a system computes before
the first. The losses of all systems must agree on the first batch.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from roadint.bench.report import case, ratio
from roadint.bench.train_systems import SYSTEMS, TrainingJob
from roadint.bench.turns import in_turns
from roadint.bench.workers import Worker, workers
from roadint.errors import RoadError
from roadint.progress import track

_SHAPE = {"prompt": 128, "completion": 32, "rows": 8, "compositions": 2}
_AXES: dict[str, Sequence[int]] = {
    "prompt": (32, 128, 480),
    "completion": (8, 32, 128),
    "rows": (2, 8, 16),
    "compositions": (1, 2, 8),
}


def bench_train(
    job: TrainingJob,
    systems: Sequence[str],
    *,
    steps: int | None = 20,
    scaling: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Time training steps.

    Args:
        job: The training job.
        systems: Names in SYSTEMS.
        steps: How many of the job's steps to time, evenly over an epoch; None for all steps of all
            epochs.
        scaling: Whether to time steps of random rows of many shapes, too.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "cases", "ratios"}.

    Raises:
        RoadError: where the systems' losses disagree, or one of them fails.
    """
    cases: list[dict[str, Any]] = []
    with workers({name: SYSTEMS[name] for name in systems}, job) as started:
        prepared = {worker.name: worker.ask("prepare_job") for worker in started}
        about = started[0].ask("machine")
        epoch = prepared[started[0].name]["steps"]
        total = epoch * job.epochs
        numbers = list(range(total))
        if steps is not None:
            numbers = spread(epoch, steps)
            if job.shape is not None:  # random rows are all alike
                numbers = [index % epoch for index in range(steps)]
        times = _time_steps(started, numbers, quiet)
        for worker in started:
            seconds, preparation = times[worker.name], prepared[worker.name]["seconds"]
            peak, mean = worker.ask("peak_mb"), fmean(seconds)
            more = {"mean_s": round(mean, 5)}
            if worker.name.startswith("roadint"):
                flops = sum(worker.ask("flops", number) for number in numbers)
                rate = about["matmul_gflops"] * 1e9
                more["matmul_fraction"] = round(flops / sum(seconds) / rate, 3)
            cases.append(case("step", worker.name, seconds, peak, **more))
            whole = {
                "steps": total,
                "preparation_s": round(preparation, 2),
                "measured_steps": len(numbers),
            }
            seconds_of_all = [preparation + mean * total]
            cases.append(case("whole job", worker.name, seconds_of_all, peak, **whole))
        if scaling:
            cases += _scaling(started, quiet)
    return {
        "machine": about,
        "job": {**vars(job), "data": dict(job.data)},
        "cases": cases,
        "ratios": _ratios(cases),
    }


def spread(epoch: int, steps: int) -> list[int]:
    """The numbers of steps that lie evenly over an epoch, each once.

    Examples:
        >>> spread(8, 4), spread(3, 20)
        ([0, 2, 4, 6], [0, 1, 2])
    """
    count = min(steps, epoch)
    return [index * epoch // count for index in range(count)]


def _time_steps(
    started: list[Worker], numbers: Sequence[int], quiet: bool
) -> dict[str, list[float]]:
    """Time steps, in seconds; the first step runs twice, and its first run does not count."""
    losses = {worker.name: worker.ask("step", numbers[0])[1] for worker in started}
    first = started[0].name
    for name, loss in losses.items():
        if abs(loss - losses[first]) > 0.02 * loss:
            raise RoadError(
                f"{name} starts at a loss of {loss:.4f}, {first} at {losses[first]:.4f}: "
                "not the same job"
            )
    times: dict[str, list[float]] = {worker.name: [] for worker in started}
    for index, number in enumerate(track(numbers, len(numbers), "steps", quiet=quiet)):
        for worker in in_turns(started, index):
            times[worker.name].append(worker.ask("step", number)[0])
    return times


def _scaling(started: list[Worker], quiet: bool, runs: int = 3) -> list[dict[str, Any]]:
    """Time steps of random tokens, along one axis at a time."""
    points = [(axis, value) for axis, values in _AXES.items() for value in values]
    cases = []
    known: dict[tuple[int, ...], dict[str, list[float]]] = {}
    for axis, value in track(points, len(points), "scaling", quiet=quiet):
        shape = tuple({**_SHAPE, axis: value}.values())
        if shape not in known:
            for worker in started:
                worker.ask("prepare_random", *shape)
            known[shape] = _time_steps(started, [0] * runs, quiet=True)
        cases += [
            case(f"step by {axis}", name, seconds, None, **{axis: value})
            for name, seconds in known[shape].items()
        ]
    return cases


def _ratios(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ratios = []
    for name, key in (("step", "mean_s"), ("whole job", "median_s")):
        seconds = {timed["system"]: timed[key] for timed in cases if timed["name"] == name}
        for system, value in seconds.items():
            if system != "roadint":
                ratios.append(ratio(name, system, value, seconds["roadint"]))
    return ratios
