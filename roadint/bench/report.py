"""Cases and ratios, in the form that every `roadint bench … --json` has."""

from collections.abc import Sequence
from statistics import median
from typing import Any


def case(
    name: str, system: str, seconds: Sequence[float], peak: float | None, **more: Any
) -> dict[str, Any]:
    """Make one row of a report.

    Args:
        name: What was done.
        system: What did it.
        seconds: The time of every run.
        peak: Memory in MB, None where it was not measured.
        **more: What else the row says.

    Returns:
        The row.

    Example:
        >>> case("step", "roadint", [3.0, 1.0, 2.0], None)["median_s"]
        2.0
    """
    rounded = [round(value, 5) for value in seconds]
    return {
        "name": name,
        "system": system,
        "median_s": round(median(rounded), 5),
        "min_s": min(rounded),
        "max_s": max(rounded),
        "runs": len(rounded),
        "peak_mb": None if peak is None else round(peak, 1),
        **more,
    }


def ratio(name: str, over: str, seconds: float, roadint_seconds: float) -> dict[str, Any]:
    """Say how many times faster roadint is than another system.

    Args:
        name: What was done.
        over: The other system.
        seconds: Its time.
        roadint_seconds: roadint's.

    Returns:
        A row of a report's ratios; its value is above 1 where roadint is faster.

    Example:
        >>> ratio("step", "pyvene", 6.0, 2.0)["value"]
        3.0
    """
    return {"name": name, "over": over, "value": round(seconds / roadint_seconds, 3)}
