"""How sure a figure is: bootstrap intervals over references or answers, mean and spread over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000


def interval(values: Sequence[float], seed: int = 0) -> list[float]:
    """The 95 % percentile bootstrap interval of the mean, [low, high]; the values are resampled whole."""
    sample = np.asarray(values, dtype=float)
    index = np.random.default_rng(seed).integers(len(sample), size=(RESAMPLES, len(sample)))
    return [float(bound) for bound in np.percentile(sample[index].mean(axis=1), [2.5, 97.5])]


def mean_of(reports: Sequence[Any]) -> Any:
    """The mean of every number over reports of one form, nested mappings of numbers; a share that a report lacks is 0."""
    return _over(reports, lambda values: float(np.mean(values)))


def spread_of(reports: Sequence[Any]) -> Any:
    """The sample standard deviation of every number over reports of one form."""
    return _over(reports, lambda values: float(np.std(values, ddof=1)))


def _over(reports: Sequence[Any], summarize: Any) -> Any:
    if any(isinstance(each, Mapping) for each in reports):
        names = dict.fromkeys(name for each in reports for name in each)
        return {name: _over([each.get(name, 0.0) for each in reports], summarize) for name in names}
    if any(each is None for each in reports):
        return None
    return summarize(reports)
