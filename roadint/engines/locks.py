"""Calls of a model side by side, and changes of its weights, which no call may run beside."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from roadint.errors import RoadError


class Lock:
    """threading's Lock, as an attribute of what can be copied and pickled: a copy gets one of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: Any) -> "Lock":
        return Lock()

    def __reduce__(self) -> Any:
        return Lock, ()


class Gate:
    """Counts the calls that run. A copy of what has one gets one of its own."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running = 0
        self._changing = False
        self._own = threading.local()  # how deep this thread is in calls

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call, or a part of one: waits for a change that is under way; calls inside calls go on."""
        depth = getattr(self._own, "depth", 0)
        if not depth:
            with self._condition:
                self._condition.wait_for(lambda: not self._changing)
                self._running += 1
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            if not depth:
                with self._condition:
                    self._running -= 1
                    self._condition.notify_all()

    @contextmanager
    def change(self, what: str, *, wait: bool = False) -> Iterator[None]:
        """A change of the weights: raises RoadError while calls run or, with `wait`, lets those end and none begin."""
        with self._condition:
            if getattr(self._own, "depth", 0) or (self._running and not wait):
                raise RoadError(
                    f"{what} while {self._running} calls of this model run: expected none; wait until they have ended"
                )
            self._condition.wait_for(lambda: not self._changing)
            self._changing = True
        try:
            with self._condition:
                self._condition.wait_for(lambda: not self._running)
            yield
        finally:
            with self._condition:
                self._changing = False
                self._condition.notify_all()

    def __deepcopy__(self, memo: Any) -> "Gate":
        return Gate()

    def __reduce__(self) -> Any:
        return Gate, ()
