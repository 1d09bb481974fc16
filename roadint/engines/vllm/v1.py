"""vLLM's first model runner: the steps of a batch that persists (needs vLLM)."""

import functools
from typing import Any

from roadint.engines.vllm.worker import worker_of


def wrap_runner(runner: Any) -> None:
    """Make a model runner tell roadint what comes.

    Args:
        runner: vLLM's class; the CPU's inherits from it.
    """
    _wrap_update(runner)
    _wrap_prepare(runner)
    _wrap_forward(runner)
    _wrap_trial(runner)


def _wrap_update(runner: Any) -> None:
    update = runner._update_states

    @functools.wraps(update)
    def _update_states(self: Any, scheduler_output: Any) -> Any:
        road = worker_of(self)
        if road is not None:
            for request in scheduler_output.finished_req_ids:
                road.steps.remove(request)
            for data in scheduler_output.scheduled_new_reqs:
                road.add(data)
        return update(self, scheduler_output)

    runner._update_states = _update_states


def _wrap_prepare(runner: Any) -> None:
    prepare = runner._prepare_inputs

    @functools.wraps(prepare)
    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = prepare(self, scheduler_output, num_scheduled_tokens)
        road = worker_of(self)
        if road is not None:
            batch = self.input_batch
            starts = batch.num_computed_tokens_cpu[: batch.num_reqs]
            road.steps.fill(batch.req_ids, starts, num_scheduled_tokens)
            road.begin()
        return prepared

    runner._prepare_inputs = _prepare_inputs


def _wrap_forward(runner: Any) -> None:
    forward = runner._model_forward

    @functools.wraps(forward)
    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        road = worker_of(self)
        if road is not None:
            road.check_ran()
        return output

    runner._model_forward = _model_forward


def _wrap_trial(runner: Any) -> None:
    """Profiling, warming up and capturing run no request."""
    dummy = runner._dummy_run

    @functools.wraps(dummy)
    def _dummy_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        road = worker_of(self)
        if road is not None:
            road.begin_trial()
        return dummy(self, *args, **kwargs)

    runner._dummy_run = _dummy_run
