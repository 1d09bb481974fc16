"""What runs in the engine's process: functions of an `LLM`."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.vllm.engine import Answered, Asked

_IDS = itertools.count()


def generate(
    llm: Any,
    asked: Sequence[Asked],
    events: Mapping[int, Callable[[Any], None]] | None = None,
) -> list[Answered]:
    """Answer requests, greedily.

    Args:
        llm: The engine.
        asked: The requests; all are waiting before the first step.
        events: What happens before a step, by the step's number.
    """
    engine, events = llm.llm_engine, events or {}
    ids = [add(llm, request) for request in asked]
    outputs: dict[str, Any] = {}
    preempted = dict.fromkeys(ids, 0)
    for step in itertools.count():
        if step in events:
            events[step](llm)
        if not engine.has_unfinished_requests():
            break
        for output in engine.step():
            outputs[output.request_id] = output
        for request in scheduler(llm).requests.values():
            for identity in preempted:  # the engine adds a suffix of its own
                if request.request_id.startswith(f"{identity}-"):
                    preempted[identity] = max(preempted[identity], request.num_preemptions)
    return [_answered(outputs[identity], preempted[identity]) for identity in ids]


def add(llm: Any, asked: Asked) -> str:
    """Put a request into the queue; returns its id."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    identity = f"r{next(_IDS)}"
    params = SamplingParams(
        temperature=0,
        max_tokens=asked.new,
        ignore_eos=True,
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=None if asked.compose is None else {"roadint": asked.compose},
    )
    prompt = {"prompt_token_ids": list(asked.prompt)}
    llm.llm_engine.add_request(identity, prompt, params)
    return identity


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def forget(llm: Any) -> None:
    """Empty the prefix cache."""
    assert llm.reset_prefix_cache()


def runner_name(llm: Any) -> str:
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return f"{type(worker.model_runner).__module__}.{type(worker.model_runner).__name__}"


def _answered(output: Any, preempted: int) -> Answered:
    completion = output.outputs[0]
    tokens = tuple(completion.token_ids)
    logprobs = tuple(
        float(step[token].logprob) for token, step in zip(tokens, completion.logprobs, strict=True)
    )
    return Answered(tokens, logprobs, int(output.num_cached_tokens or 0), preempted)
