"""Times of systems that take turns, in one process, with a wait for the device around each."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol, TypeVar

import torch

from roadint.bench.machine import wait_for
from roadint.bench.report import case, ratio
from roadint.bench.turns import rounds

# What a case tells of its system, not of what all systems are given.
_OF_SYSTEM = {"system", "median_s", "min_s", "max_s", "runs", "peak_mb", "over_base"}
_OF_SYSTEM |= {"tokens_per_s", "hundred_steps_s", "beside_mb", "numbers", "loss"}
BASE = "base"


class Named(Protocol):
    """What takes turns."""

    @property
    def name(self) -> str:
        """The name in reports."""


System = TypeVar("System", bound=Named)


class Stopwatch:
    """The seconds of a block of code, from a device that waits to a device that is done.

    Args:
        device: The device.

    Attributes:
        seconds: The seconds, after the block.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self.seconds = device, 0.0

    def __enter__(self) -> "Stopwatch":
        wait_for(self._device)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wait_for(self._device)
        self.seconds = time.perf_counter() - self._started


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """Time an action.

    Args:
        action: What is timed.
        device: The device on which it works.

    Returns:
        The seconds.
    """
    with Stopwatch(device) as watch:
        action()
    return watch.seconds


def take_turns(
    systems: Sequence[System],
    once: Callable[[System], float],
    runs: int,
    description: str,
    *,
    quiet: bool,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time systems, round after round; the first round warms up.

    Args:
        systems: The systems.
        once: Gives the seconds of a run.
        runs: The rounds that count.
        description: Of the progress bar.
        quiet: Whether there is no bar.

    Returns:
        By system, the seconds of the runs; and by system, the error of one that fails (the mixed
        batches of PEFT's RoAd refuse half precision).
    """
    times: dict[str, list[float]] = {system.name: [] for system in systems}
    errors: dict[str, str] = {}
    for number, system in rounds(systems, runs, description, quiet=quiet):
        if system.name in errors:
            continue
        try:
            seconds = once(system)
        except (RuntimeError, TypeError, ValueError) as error:
            errors[system.name] = (str(error).splitlines() or [type(error).__name__])[0]
            del times[system.name]
            continue
        if number:
            times[system.name].append(seconds)
    return times, errors


def compare(
    name: str,
    systems: Sequence[System],
    once: Callable[[System], float],
    runs: int,
    about: Mapping[str, Any],
    *,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Time systems in turns, as cases of a report.

    Args:
        name: The name of the cases.
        systems: The systems; the one named "base" is what the others are measured over.
        once: Gives the seconds of a run.
        runs: The rounds that count.
        about: Further entries of every case.
        quiet: Whether there is no bar.

    Returns:
        A case a system. "over_base" is the median ratio of its time to the base's in the same turn;
        one that fails has "error" instead of times.
    """
    description = ", ".join([name, *(f"{about[key]}" for key in ("mode", "dtype") if key in about)])
    times, errors = take_turns(systems, once, runs, description, quiet=quiet)
    cases = []
    for system in systems:
        if system.name in errors:
            refused = {"name": name, "system": system.name, "error": errors[system.name]}
            cases.append({**refused, **about})
            continue
        timed = case(name, system.name, times[system.name], None)
        if BASE in times:
            pairs = zip(times[system.name], times[BASE], strict=True)
            timed["over_base"] = round(median(own / base for own, base in pairs), 3)
        cases.append({**timed, **about})
    return cases


def ratios_of(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many times faster roadint is than other systems in the same case.

    Args:
        cases: Cases of a report; roadint's systems have names that begin with "roadint". Where a
            name goes on after a comma, systems are compared that go on alike, or not at all.

    Returns:
        Ratios with the case's other entries; times over the base are the median within turns.
    """
    ratios = []
    timed = [entry for entry in cases if "median_s" in entry]
    for ours in timed:
        if not ours["system"].startswith("roadint"):
            continue
        for other in timed:
            alike = _ending(other) in ("", _ending(ours)) and _about(other) == _about(ours)
            if not alike or other["system"].startswith("roadint"):
                continue
            value = ratio(ours["name"], other["system"], other["median_s"], ours["median_s"])
            if other["system"] == BASE and "over_base" in ours:
                value["value"] = round(1 / ours["over_base"], 3)
            ratios.append({**value, "system": ours["system"], **_about(ours)})
    return ratios


def _ending(entry: Mapping[str, Any]) -> str:
    return str(entry["system"].partition(",")[2])


def _about(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _OF_SYSTEM}
