"""What runs in the engine's process: functions of an `LLM`."""

import gc
import itertools
from collections.abc import Sequence
from typing import Any

from tests.vllm.engine import Answered, Asked

_ids = itertools.count()
_loras: dict[str, int] = {}
"""The folder of a LoRA → vLLM's number of it."""


def generate(llm: Any, asked: Sequence[Asked]) -> list[Answered]:
    """Answer requests, greedily; all are waiting before the first step."""
    return step_until_done(llm, [add(llm, request) for request in asked])


def answers_of(
    _: None, arguments: dict[str, Any], asked: Sequence[Asked], before: Any = None
) -> list[Answered]:
    """Start an `LLM`, answer requests and end it: vLLM is imported once for many of them.

    Args:
        arguments: Those of the `LLM`.
        asked: The requests.
        before: A function of the `LLM` that is called before the requests.
    """
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    gc.collect()  # what is left of an engine that failed would end the next one's groups
    try:
        llm = LLM(**arguments)
        if before is not None:
            before(llm)
        return generate(llm, asked)
    finally:
        cleanup_dist_env_and_memory()


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
    prompt: Any = {"prompt_token_ids": list(asked.prompt)}
    llm.llm_engine.add_request(identity, prompt, params, lora_request=_lora(asked.lora))
    return identity


def _lora(folder: str | None) -> Any:
    from vllm.lora.request import LoRARequest

    if folder is None:
        return None
    return LoRARequest(folder, _loras.setdefault(folder, len(_loras) + 1), folder)


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
