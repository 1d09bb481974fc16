"""vLLM in a process of its own: one engine, one configuration, many calls.

The runner, the interpreter and the plugins of vLLM are chosen by environment variables before it is
imported, so two engines can't share a process, and none can run beside pytest.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Runner = Literal["v1", "v2"]
LONGEST = 1200  # seconds that a call, or the start, may take
ROOT = Path(__file__).parents[2]
TRITON_CPU = Path(__file__).parent / "triton_cpu"
COMMON = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's core lies where tests can reach it
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
RUNNERS: dict[Runner, dict[str, str]] = {
    "v1": {"VLLM_USE_V2_MODEL_RUNNER": "0"},
    "v2": {"VLLM_USE_V2_MODEL_RUNNER": "1"},
}
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "seed": 0,
    "block_size": 32,
    "max_model_len": 512,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 128 << 20,
}


@dataclass(frozen=True)
class Asked:
    """A request.

    Args:
        prompt: Its tokens.
        compose: A composition in any form that a request may have.
        new: How many tokens are wanted.
        lora: The folder of a LoRA of PEFT's, which vLLM runs.
    """

    prompt: tuple[int, ...]
    compose: Any = None
    new: int = 6
    lora: str | None = None


@dataclass(frozen=True)
class Answered:
    """What came back.

    Args:
        tokens: The new tokens.
        logprobs: Their log-probabilities.
        cached: How many tokens of the prompt came from the prefix cache.
        preempted: How often the request lost its memory and began again.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached: int
    preempted: int


class EngineError(Exception):
    """An exception inside of the engine's process: the name of its class, and its message."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(f"{kind}: {message}\n{trace}")
        self.kind, self.message = kind, message


def arguments_of(
    model: str, checkpoints: dict[str, str] | None = None, **settings: Any
) -> dict[str, Any]:
    """The arguments of an `LLM`.

    Args:
        model: The model's folder.
        checkpoints: Label → folder, for the plugin; None where it is not asked for anything.
        settings: Other arguments of `LLM`; "roadint" has further keys for the plugin.
    """
    arguments = {"model": model, **SETTINGS, **settings}
    about = arguments.pop("roadint", {})
    if checkpoints is not None:
        arguments["additional_config"] = {"roadint": {"checkpoints": checkpoints, **about}}
    return arguments


class Process:
    """A process in which vLLM runs.

    Args:
        runner: "v1", or "v2", which runs in Triton's interpreter.
        arguments: Those of its `LLM`; None where functions that are called there make their own.
    """

    def __init__(self, runner: Runner, arguments: dict[str, Any] | None = None) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.vllm.process", str(theirs.fileno())],
                env=environment(runner),
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )
        self._connection.send(arguments)
        self._receive()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function(llm, *arguments)` in the engine's process.

        Raises:
            EngineError: where it raises.
        """
        self._connection.send((function, arguments))
        return self._receive()

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> Any:
        if not self._connection.poll(LONGEST):
            self._process.kill()
            raise TimeoutError(f"the engine said nothing for {LONGEST} s and was ended")
        try:
            result, error = self._connection.recv()
        except EOFError:
            code = self._process.wait(30)
            raise RuntimeError(f"the engine's process ended with code {code}") from None
        if error is not None:
            raise EngineError(*error)
        return result


class Engine(Process):
    """An `LLM` in a process of its own; its arguments are those of `arguments_of`."""

    def __init__(
        self,
        runner: Runner,
        model: str,
        checkpoints: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(runner, arguments_of(model, checkpoints, **settings))

    def generate(self, asked: Sequence[Asked]) -> list[Answered]:
        """Answer requests, greedily, as one batch where they fit."""
        from tests.vllm.inside import generate

        return list(self.run(generate, list(asked)))


def environment(runner: Runner) -> dict[str, str]:
    """The variables of a process in which vLLM runs with this runner."""
    chosen = {**os.environ, **COMMON, **RUNNERS[runner]}
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if runner == "v2" and not torch.cuda.is_available():
        chosen["TRITON_INTERPRET"] = "1"
        paths.insert(0, str(TRITON_CPU))
    return {**chosen, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
