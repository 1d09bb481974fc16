"""The engine's process: makes an `LLM`, then calls the functions that it is sent.

`python -m tests.vllm.process HANDLE`, where the handle is that of a connection.
"""

import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def serve(connection: Connection) -> None:
    arguments = connection.recv()
    llm, error = _outcome(_start, arguments)
    connection.send((None, error))
    while error is None:
        try:
            function, given = connection.recv()
        except EOFError:  # closed by the tests, or they are gone
            os._exit(0)  # the interpreter's own end would take up to half a minute
        result, failed = _outcome(function, llm, *given)
        connection.send((result, failed))


def _start(arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    if os.environ.get("TRITON_INTERPRET") == "1":
        _sample_in_torch()
    return LLM(**arguments)


def _sample_in_torch() -> None:
    """Greedy decoding and log-probabilities without Triton.

    What follows the logits is vLLM's alone, and takes seconds a step in the interpreter. The
    kernels that lay out a batch stay interpreted.
    """
    from vllm.v1.worker.gpu.sample import logprob, sampler

    def greedy(logits: Any, *_: Any, **__: Any) -> Any:
        return logits.argmax(-1)

    def logprobs(logits: Any, tokens: Any) -> Any:
        return logits.float().log_softmax(-1).gather(-1, tokens.long())

    sampler.gumbel_sample = greedy
    logprob.compute_token_logprobs = logprobs


def _outcome(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    try:
        return function(*arguments), None
    except Exception as error:  # of all kinds, to be raised on the other side
        return None, (type(error).__name__, str(error), traceback.format_exc())


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
