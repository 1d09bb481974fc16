"""The thread time of functions that are named: what roadint takes of an engine's forward passes."""

import functools
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

INSIDE: Mapping[str, Sequence[str]] = {
    "worker": (
        "roadint.engines.vllm.worker:RoadWorker.add",
        "roadint.engines.vllm.worker:RoadWorker.begin",
        "roadint.engines.vllm.worker:RoadWorker.check_ran",
        "roadint.engines.vllm.steps:Steps.fill",
        "roadint.engines.vllm.steps:Steps.remove",
        "roadint.engines.vllm.operations:_edit",
        "roadint.engines.vllm.operations:_turn_output",
    ),
    "core": (
        "roadint.engines.vllm.core:_key",
        "roadint.engines.vllm.rows.prompt_edits:PromptEdits.key_of_block",
    ),
    "front": ("roadint.engines.vllm.front:_resolve",),
}
"""Part of an engine → all that roadint runs there: what a worker does beside its forward passes and
in them, what the core does for the keys of blocks, what the front does to read a request."""


class Meter:
    """Thread time by group, in which functions that call each other count once.

    Args:
        clock: Gives nanoseconds.

    Attributes:
        nanoseconds: Group → the time since the last `take`.
        calls: Group → the calls from outside of the group since then.
    """

    def __init__(self, clock: Callable[[], int] = time.thread_time_ns) -> None:
        self._clock = clock
        self._inside: set[str] = set()
        self.nanoseconds: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def wrapped(self, group: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time counts for a group."""
        self.nanoseconds[group] = self.calls[group] = 0

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            if group in self._inside:
                return function(*args, **kwargs)
            self._inside.add(group)
            started = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.nanoseconds[group] += self._clock() - started
                self.calls[group] += 1
                self._inside.discard(group)

        return measured

    def take(self) -> dict[str, tuple[float, int]]:
        """Group → its seconds and calls since the last time, which are forgotten."""
        taken = {
            group: (spent / 1e9, self.calls[group]) for group, spent in self.nanoseconds.items()
        }
        for group in taken:
            self.nanoseconds[group] = self.calls[group] = 0
        return taken

    def wrap(self, group: str, place: str) -> None:
        """Replace a function where it stands.

        Args:
            group: Its group.
            place: "module:function" or "module:Class.function".
        """
        module, _, path = place.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, name, self.wrapped(group, getattr(owner, name)))


def measure_roadint(meter: Meter) -> None:
    """Let a meter measure all that roadint runs in this process.

    Args:
        meter: The meter.
    """
    for group, places in INSIDE.items():
        for place in places:
            meter.wrap(group, place)
    _wrap_compiled()


def _wrap_compiled() -> None:
    """Graphs that are compiled call the operations by what was registered for them."""
    from roadint.engines.vllm import operations

    for name in ("edit", "turn_output"):
        function = getattr(operations, f"_{name}")
        operations._library.impl(name, function, "CPU", allow_override=True)
