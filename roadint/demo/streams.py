"""The streams of answers that browsers and clients hold open."""

from collections import Counter


class OpenStreams:
    """Sessions of pages, and calls of the endpoint, whose answers somebody reads."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def __contains__(self, key: object) -> bool:
        return self._open[str(key)] > 0

    def begin(self, key: str) -> None:
        """Note that somebody begins to read."""
        self._open[key] += 1

    def end(self, key: str) -> None:
        """Note that somebody stops reading."""
        self._open[key] -= 1
        if self._open[key] <= 0:
            del self._open[key]
