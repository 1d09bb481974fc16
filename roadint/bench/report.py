"""Cases and ratios, in the form that every `roadint bench … --json` has."""

from collections.abc import Sequence
from statistics import median
from typing import Any


def case(
    name: str, system: str, seconds: Sequence[float], peak: float | None, **more: Any
) -> dict[str, Any]:
    """Make a case of a report.

    Args:
        name: The name of the case.
        system: The system that was timed.
        seconds: The time of every run.
        peak: The peak of memory in MB; None where it was not measured.
        **more: Further entries.

    Returns:
        The case.

    Examples:
        >>> case("step", "roadint", [3.0, 1.0, 2.0], None)["median_s"]
        2.0
    """
    rounded = [round(value, 7) for value in seconds]  # to 0.1 µs: a layer takes 20 on a GPU
    return {
        "name": name,
        "system": system,
        "median_s": round(median(rounded), 7),
        "min_s": min(rounded),
        "max_s": max(rounded),
        "runs": len(rounded),
        "peak_mb": None if peak is None else round(peak, 1),
        **more,
    }


def ratio(name: str, over: str, seconds: float, roadint_seconds: float) -> dict[str, Any]:
    """Make a ratio of a report: how many times faster roadint is than another system.

    Args:
        name: The name of the case.
        over: The other system.
        seconds: The time of the other system.
        roadint_seconds: The time of roadint.

    Returns:
        The ratio; its value is above 1 where roadint is faster.

    Examples:
        >>> ratio("step", "pyvene", 6.0, 2.0)["value"]
        3.0
    """
    return {"name": name, "over": over, "value": round(seconds / roadint_seconds, 3)}
