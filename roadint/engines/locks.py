"""Calls of a model side by side, and changes of its weights, beside which no call may run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from roadint.errors import RoadError


class Lock:
    """threading's Lock for what can be copied and pickled: a copy gets a lock of its own."""

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
    """Lets calls run side by side, and changes of the weights alone.

    A copy of what has a gate gets a gate of its own.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running = 0
        self._changing = False
        self._thread = threading.local()  # depth: how deep this thread is in calls

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call, or a part of one: waits for a change that is under way.

        Calls inside calls go on.
        """
        depth = getattr(self._thread, "depth", 0)
        if not depth:
            with self._condition:
                self._condition.wait_for(lambda: not self._changing)
                self._running += 1
        self._thread.depth = depth + 1
        try:
            yield
        finally:
            self._thread.depth = depth
            if not depth:
                with self._condition:
                    self._running -= 1
                    self._condition.notify_all()

    @contextmanager
    def change(self, what: str, *, wait: bool = False) -> Iterator[None]:
        """A change of the weights.

        Args:
            what: What changes, for the message.
            wait: Let running calls end and none begin, instead of refusing.

        Raises:
            RoadError: while calls run, unless it waits; always inside a call of this thread.
        """
        with self._condition:
            if getattr(self._thread, "depth", 0) or (self._running and not wait):
                raise RoadError(
                    f"{what} while {self._running} calls of this model run: expected none; wait "
                    "until they have ended"
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
