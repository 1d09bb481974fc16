"""Bootstrap intervals over references or answers; mean and spread over seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
_AT_ONCE = 50


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean.

    Args:
        values: The sample, which is resampled 2,000 times.
        seed: The seed of resampling.

    Returns:
        The lower and the upper bound, in the unit of the values.

    Examples:
        >>> interval([0.5] * 10)
        (0.5, 0.5)
    """
    sample = np.asarray(values, dtype=float)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(0, RESAMPLES, _AT_ONCE):  # all at once would take 30 kB a value
        index = draw.integers(len(sample), size=(_AT_ONCE, len(sample)))
        means.append(sample[index].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def mean_of(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number over reports.

    Args:
        reports: Nested mappings of numbers. A number that a report lacks counts as 0; one that is
            None in a report is None in the mean.

    Examples:
        >>> mean_of([{"a": {"x": 1.0}}, {"a": {"x": 3.0, "y": 1.0}}])
        {'a': {'x': 2.0, 'y': 0.5}}
    """
    return _summarised(reports, lambda values: float(np.mean(values)))  # type: ignore[no-any-return]


def spread_of(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sample standard deviation of every number over reports; `reports` as in `mean_of`."""
    summary = _summarised(reports, lambda values: float(np.std(values, ddof=1)))
    return summary  # type: ignore[no-any-return]


def _summarised(values: Sequence[Any], summarise: Callable[[Sequence[float]], float]) -> Any:
    if any(isinstance(value, Mapping) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {
            name: _summarised([value.get(name, 0.0) for value in values], summarise)
            for name in names
        }
    if any(value is None for value in values):
        return None
    return summarise(values)
