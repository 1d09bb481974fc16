"""The time of a generation, from the times of steps at a few lengths of the cache."""

from collections.abc import Mapping

import numpy as np


def generation_seconds(steps: Mapping[int, float], start: int, tokens: int) -> float:
    """Add the steps of a generation up, without making them all.

    A step's time grows with the tokens that its attention reads, so between measured lengths it is
    interpolated, on a line; outside of them it is that of the nearest.

    Args:
        steps: Tokens in the cache before a step → the seconds of the step.
        start: The tokens in the cache before the first step.
        tokens: How many steps there are.

    Returns:
        Seconds.

    Examples:
        >>> generation_seconds({0: 1.0, 4: 3.0}, start=0, tokens=3)  # 1 + 1.5 + 2
        4.5
    """
    lengths = sorted(steps)
    times = [steps[length] for length in lengths]
    return float(np.interp(np.arange(start, start + tokens), lengths, times).sum())
