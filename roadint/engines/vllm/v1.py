"""vLLM's first model runner: the steps of a batch that persists (needs vLLM)."""

import functools
from collections.abc import Callable
from typing import Any

from roadint.engines.vllm.worker import RoadWorker, worker_of


def _nothing(road: RoadWorker, runner: Any, *args: Any, **kwargs: Any) -> None:
    """What is called where there is nothing to do."""


def wrap_runner(runner: Any) -> None:
    """Make a model runner tell roadint what comes.

    Args:
        runner: vLLM's class; the CPU's inherits from it.
    """
    _wrap(runner, "_update_states", before=_come_and_go)
    _wrap(runner, "_prepare_inputs", after=_fill)
    _wrap(runner, "_model_forward", after=lambda road, *args, **kwargs: road.check_ran())
    # Profiling, warming up and capturing run no request.
    _wrap(runner, "_dummy_run", before=lambda road, *args, **kwargs: road.begin_trial())


def _wrap(
    runner: Any,
    name: str,
    before: Callable[..., None] = _nothing,
    after: Callable[..., None] = _nothing,
) -> None:
    """Call something before or after a method, with its arguments, where a model is armed."""
    method = getattr(runner, name)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        road = worker_of(self)
        if road is None:
            return method(self, *args, **kwargs)
        before(road, self, *args, **kwargs)
        result = method(self, *args, **kwargs)
        after(road, self, *args, **kwargs)
        return result

    setattr(runner, name, wrapped)


def _come_and_go(road: RoadWorker, runner: Any, scheduler_output: Any) -> None:
    for request in scheduler_output.finished_req_ids:
        road.steps.remove(request)
    for data in scheduler_output.scheduled_new_reqs:
        road.add(data)


def _fill(road: RoadWorker, runner: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> None:
    batch = runner.input_batch
    starts = batch.num_computed_tokens_cpu[: batch.num_reqs]
    road.steps.fill(batch.req_ids, starts, num_scheduled_tokens)
    road.begin()
