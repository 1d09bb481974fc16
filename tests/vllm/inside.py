"""What runs in the engine's process: functions of an `LLM`."""

import itertools
from collections.abc import Sequence
from typing import Any

from tests.vllm.engine import Answered, Asked

_ids = itertools.count()


def generate(llm: Any, asked: Sequence[Asked]) -> list[Answered]:
    """Answer requests, greedily; all are waiting before the first step."""
    return step_until_done(llm, [add(llm, request) for request in asked])


def add(llm: Any, asked: Asked) -> str:
    """Put a request into the queue.

    Returns:
        Its id.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    identity = f"r{next(_ids)}"
    params = SamplingParams(
        temperature=0,
        max_tokens=asked.new,
        ignore_eos=True,
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=None if asked.compose is None else {"roadint": asked.compose},
    )
    llm.llm_engine.add_request(identity, {"prompt_token_ids": list(asked.prompt)}, params)
    return identity


def step_until_done(llm: Any, ids: Sequence[str]) -> list[Answered]:
    """Step until no request is left.

    Args:
        llm: The engine.
        ids: The requests whose answers are wanted.

    Returns:
        The answers, in this order.
    """
    outputs: dict[str, Any] = {}
    preempted: dict[str, int] = {}
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            outputs[output.request_id] = output
        for request in scheduler(llm).requests.values():
            identity = request.request_id.rpartition("-")[0]  # without vLLM's own suffix
            preempted[identity] = max(preempted.get(identity, 0), request.num_preemptions)
    return [_answered(outputs[identity], preempted.get(identity, 0)) for identity in ids]


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def forget(llm: Any) -> None:
    """Empty the prefix cache."""
    assert llm.reset_prefix_cache()


def runner_of(llm: Any) -> str:
    """The module of the model runner's class."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return str(type(worker.model_runner).__module__)


def _answered(output: Any, preempted: int) -> Answered:
    completion = output.outputs[0]
    tokens = tuple(completion.token_ids)
    steps = zip(tokens, completion.logprobs, strict=True)
    logprobs = tuple(float(step[token].logprob) for token, step in steps)
    return Answered(tokens, logprobs, int(output.num_cached_tokens or 0), preempted)
