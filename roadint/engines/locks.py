"""Locks: calls run side by side, changes of the weights run alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from roadint.errors import RoadError


class Lock:
    """A threading.Lock that can be copied and pickled; a copy is a new, open lock."""

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

    It can be copied and pickled; a copy is a new gate, through which nothing runs.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running = 0
        self._changing = False
        self._thread = threading.local()  # depth: how deep this thread is in calls

    @contextmanager
    def call(self) -> Iterator[None]:
        """Enter a call, or a part of one, after any change that is under way.

        A call inside another one does not wait.
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
        """Enter a change of the weights.

        Args:
            what: What the change does, for the message.
            wait: Wait for running calls to end, instead of refusing.

        Raises:
            RoadError: while calls run, unless `wait`; and always inside a call of this thread.
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
