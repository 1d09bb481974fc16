"""One process a system: its memory is its own, its state stays warm, and all of them take turns."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from roadint.errors import RoadError

System = Callable[[str, Any], Any]  # (task, argument) → result


class Worker:
    """A system in a process of its own, asked one thing at a time."""

    def __init__(self, name: str, make: Callable[..., System], arguments: tuple[Any, ...]) -> None:
        """make: a function of a module, called with `arguments` in the new process."""
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, task: str, argument: Any = None) -> Any:
        """The system's result. Raises RoadError with the other process' error where it fails."""
        try:
            self._pipe.send((task, argument))
            done, result = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RoadError(
                f"benchmark of {self.name} ended early: its process died, perhaps for want of memory"
            ) from None
        if not done:
            raise RoadError(f"benchmark of {self.name} failed:\n{result}")
        return result

    def stop(self) -> None:
        """End the process and give its memory back."""
        self._pipe.close()  # it waits for the next task, and takes this as the end
        self._process.join(timeout=5)
        self._process.terminate()


@contextmanager
def workers(makes: Mapping[str, Callable[..., System]], *arguments: Any) -> Iterator[list[Worker]]:
    """A worker for each system, all with the same arguments."""
    started: list[Worker] = []
    try:
        for name, make in makes.items():
            started.append(Worker(name, make, arguments))
        yield started
    finally:
        for worker in started:
            worker.stop()


def in_turns(items: list[Any], round_number: int) -> list[Any]:
    """The items, another one first in each round: none always runs in the wake of the same other."""
    first = round_number % len(items)
    return items[first:] + items[:first]


def _serve(pipe: Any, make: Callable[..., System], arguments: tuple[Any, ...]) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (four times the same line about the model; errors go through the pipe)
    system: System | None = None
    while True:
        try:
            task, argument = pipe.recv()
        except EOFError:
            return
        try:
            system = system or make(*arguments)
            pipe.send((True, system(task, argument)))
        except RoadError as error:  # says it all by itself
            pipe.send((False, str(error)))
        except Exception:
            pipe.send((False, traceback.format_exc(limit=-4)))
