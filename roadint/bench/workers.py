"""Workers: one process for every system, so that memory is separate and state stays warm."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from roadint.errors import RoadError


class Worker:
    """A system in a process of its own, asked one thing at a time.

    Args:
        name: The name of the system, for error messages.
        make: A class or function of a module, which makes the system in the new process.
        arguments: The arguments of `make`.
        has_children: Whether the system may start processes itself.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., object],
        arguments: tuple[Any, ...],
        *,
        has_children: bool = False,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, remote = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(remote, make, arguments), daemon=not has_children
        )
        self._process.start()
        remote.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the system.

        Args:
            method: The name of the method.
            *arguments: The arguments.

        Returns:
            The result.

        Raises:
            RoadError: where the system fails, with the error of its process.
        """
        try:
            self._pipe.send((method, arguments))
            done, result = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise RoadError(
                f"benchmark of {self.name} ended early: "
                "its process died, perhaps for want of memory"
            ) from None
        if not done:
            why = next(line for line in reversed(result.splitlines()) if line.strip())
            raise RoadError(f"benchmark of {self.name} failed: {why.strip()}\n{result}")
        return result

    def stop(self) -> None:
        """End the process and give its memory back."""
        self._pipe.close()  # it waits for the next question, and takes this as the end
        self._process.join(timeout=5)
        self._process.terminate()


@contextmanager
def workers(makes: Mapping[str, Callable[..., object]], *arguments: Any) -> Iterator[list[Worker]]:
    """Start a worker for each system, and stop them at the end.

    Args:
        makes: Name of a system → what makes it.
        *arguments: The arguments of all `makes`.

    Yields:
        The workers.
    """
    started: list[Worker] = []
    try:
        for name, make in makes.items():
            started.append(Worker(name, make, arguments))
        yield started
    finally:
        for worker in started:
            worker.stop()


def _serve(pipe: Connection, make: Callable[..., object], make_arguments: tuple[Any, ...]) -> None:
    # All systems would print the same about the model; errors go through the pipe.
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    system: object | None = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if system is None:
                system = make(*make_arguments)
            pipe.send((True, getattr(system, method)(*arguments)))
        except RoadError as error:  # says it all by itself
            pipe.send((False, str(error)))
        except Exception:  # whatever a system raises: the parent process tells it
            pipe.send((False, traceback.format_exc(limit=-4)))
