"""An engine of vLLM in a process of its own: it answers requests, and tells how long it took."""

import gc
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median
from typing import Any

from roadint.bench.machine import default_device, peak_mb
from roadint.bench.serve_inputs import RANK, Inputs, ServeJob, compositions
from roadint.bench.serve_meter import Meter, measure_roadint
from roadint.errors import RoadError, first_line

_BLOCK = 32  # tokens of a block of the cache on a CPU
_CHECKED = 4  # compositions, in a check that they act
_TAIL = 25  # lines of an engine's log in the message of its failure


@dataclass(frozen=True)
class EngineSpec:
    """An engine.

    Args:
        kind: "bare", "hidden", "adapters" or "lora".
        cached: Whether it has a prefix cache.
        counts: How many different compositions, or LoRAs, its requests have; a run for each.
        subspaces: How many subspaces of a layer act; runs for each. (0,) where nothing does.
        slots: Of a LoRA engine: how many LoRAs a batch may have.
        log: The file of what vLLM prints.
        inside: Whether all of it runs in one process, where functions are measured.
    """

    kind: str
    cached: bool
    counts: tuple[int, ...]
    subspaces: tuple[int, ...]
    slots: int
    log: str
    inside: bool = False


@dataclass(frozen=True)
class Batch:
    """Requests that come at once.

    Args:
        count: How many different compositions, or LoRAs, they have.
        subspaces: How many subspaces of a layer act.
        fresh: Whether no engine has seen the compositions before.
    """

    count: int
    subspaces: int
    fresh: bool = False


def environment_of(spec: EngineSpec, on_gpu: bool) -> dict[str, str]:
    """What vLLM reads of the environment, where the caller's says nothing else.

    Args:
        spec: The engine.
        on_gpu: Whether it runs on a GPU.
    """
    wanted = {"VLLM_LOGGING_LEVEL": "WARNING"}
    if spec.kind in ("bare", "lora"):
        groups = ("vllm.general_plugins", "vllm.platform_plugins")
        names = {entry.name for group in groups for entry in entry_points(group=group)}
        wanted["VLLM_PLUGINS"] = ",".join(sorted(names - {"roadint"}))
    if not on_gpu:  # engines take turns on the same cores
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if spec.inside or not on_gpu:
        wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return wanted


def arguments_of(spec: EngineSpec, job: ServeJob, inputs: Inputs, on_gpu: bool) -> dict[str, Any]:
    """The arguments of vLLM's engine.

    Args:
        spec: The engine.
        job: What is served.
        inputs: Where it lies.
        on_gpu: Whether it runs on a GPU.
    """
    length = job.prompt_tokens + job.new_tokens
    arguments: dict[str, Any] = {
        "model": inputs.source,
        "dtype": job.dtype,
        "max_num_seqs": job.requests,
        "max_model_len": length + 1,
        "enable_prefix_caching": spec.cached,
        "enforce_eager": not job.compiled,
        "disable_log_stats": False,
    }
    if not on_gpu:
        tokens = (length // _BLOCK + 2) * _BLOCK * job.requests
        # A quarter more, for models whose layers keep different lengths.
        arguments["kv_cache_memory_bytes"] = max(1 << 28, tokens * inputs.token_bytes * 5 // 4)
        arguments["block_size"] = _BLOCK
    if spec.kind == "lora":
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": RANK,
            "max_loras": spec.slots,
            "max_cpu_loras": spec.slots,
        }
    if spec.kind in ("hidden", "adapters"):
        checkpoints = inputs.hidden if spec.kind == "hidden" else inputs.adapters
        arguments["additional_config"] = {"roadint": {"checkpoints": dict(checkpoints)}}
    return {**arguments, **dict(job.engine)}


class ServedEngine:
    """The engine, made in the process that runs it.

    Args:
        spec: The engine.
        job: What is served.
        inputs: Where it lies.

    Raises:
        RoadError: where it does not start, with the end of its log.
    """

    def __init__(self, spec: EngineSpec, job: ServeJob, inputs: Inputs) -> None:
        self._spec, self._job, self._inputs = spec, job, inputs
        self._on_gpu = default_device().type == "cuda"
        self._meter: Meter | None = None
        self._fresh = 1_000_000  # numbers of compositions that no other run has
        for name, value in environment_of(spec, self._on_gpu).items():
            os.environ.setdefault(name, value)
        _print_to(spec.log)
        from vllm import LLM

        try:
            self._llm = LLM(**arguments_of(spec, job, inputs, self._on_gpu))
        except Exception as error:  # whatever a library raises that runs out of memory
            raise RoadError(f"{first_line(error)}; the end of its log:\n{tail(spec.log)}") from None

    def about(self) -> dict[str, Any]:
        """The version of vLLM, and what of its settings explains the figures."""
        import vllm

        config = self._llm.llm_engine.vllm_config
        return {
            "vllm": vllm.__version__,
            "model_runner": 2 if config.use_v2_model_runner else 1,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        }

    def check(self) -> None:
        """Check that what is timed acts: no two compositions, or LoRAs, give one answer.

        Raises:
            RoadError: where two do.
        """
        for subspaces in self._spec.subspaces if self._spec.kind != "bare" else ():
            count = min(_CHECKED, max(self._spec.counts))
            if not count:
                continue
            texts = compositions(count, count, subspaces or 1)
            # On a CPU, vLLM gives requests without a LoRA one of those that others of a batch have.
            answers = self._answers([None], [None])
            answers += self._answers(texts, [self._lora(number) for number in range(count)])
            if len(set(answers)) < len(answers):
                raise RoadError(
                    f"{self._spec.kind}: {len(answers)} requests with the same prompt, and "
                    f"different edits or none, have {len(set(answers))} different answers: what "
                    "would be timed does not act"
                )

    def _answers(self, texts: Sequence[str | None], loras: Sequence[Any]) -> list[Any]:
        """Tokens and log-probabilities of requests with one prompt."""
        from vllm import SamplingParams

        is_lora = self._spec.kind == "lora"
        settings = [
            SamplingParams(
                max_tokens=2,
                temperature=0.0,
                logprobs=1,
                ignore_eos=True,
                extra_args=None if is_lora or text is None else {"roadint": text},
            )
            for text in texts
        ]
        prompt: Any = {"prompt_token_ids": list(self._inputs.prompts[0])}
        outputs = self._llm.generate(
            [prompt] * len(texts),
            settings,
            use_tqdm=False,
            lora_request=list(loras) if is_lora else None,
        )
        return [
            tuple(
                (token, entry.logprob)
                for step in output.outputs[0].logprobs
                for token, entry in step.items()
            )
            for output in outputs
        ]

    def warm_up(self, batch: Batch) -> None:
        """Run a batch for two tokens: it compiles, loads and writes what a run needs."""
        self._serve(batch, min(2, self._job.new_tokens))

    def run(self, batch: Batch) -> dict[str, Any]:
        """Serve a batch, with an empty prefix cache at its beginning.

        Args:
            batch: The requests.

        Returns:
            "seconds" of all together; over the requests the median "ttft" (time to first token) and
            the longest, "ttft_most", and the median "tpot" (time of a token after the first), in
            seconds; "cached", the share of the prompts' tokens that the cache had; "preemptions".
        """
        outputs, seconds = self._serve(batch, self._job.new_tokens)
        self._check_whole(outputs)
        firsts = [output.metrics.first_token_latency for output in outputs]
        later = max(1, self._job.new_tokens - 1)
        metrics = [output.metrics for output in outputs]
        return {
            "seconds": seconds,
            "ttft": median(firsts),
            "ttft_most": max(firsts),
            "tpot": median((m.last_token_ts - m.first_token_ts) / later for m in metrics),
            "cached": sum(output.num_cached_tokens or 0 for output in outputs)
            / (self._job.requests * self._job.prompt_tokens),
            "preemptions": sum(m.num_preemptions for m in metrics),
        }

    def _check_whole(self, outputs: Sequence[Any]) -> None:
        lengths = {len(output.outputs[0].token_ids) for output in outputs}
        if len(outputs) != self._job.requests or lengths != {self._job.new_tokens}:
            raise RoadError(
                f"{self._spec.kind} answered {len(outputs)} requests of {self._job.requests}, "
                f"with {sorted(lengths)} tokens: expected {self._job.new_tokens}"
            )

    def measure(self, batch: Batch) -> dict[str, tuple[float, int]]:
        """Serve a batch whose compositions are known, unless it is fresh, and measure thread time.

        Args:
            batch: The requests.

        Returns:
            Group of `serve_meter.INSIDE`, and "forward" for all that the worker does → its seconds
            and calls.
        """
        if self._meter is None:
            self._meter = Meter()
            measure_roadint(self._meter)
            self._llm.collective_rpc(_measure_forward, args=(self._meter,))
        if not batch.fresh:
            self.warm_up(batch)  # others may have taken its slots
        self._meter.take()
        self._serve(batch, self._job.new_tokens)
        return self._meter.take()

    def peak_mb(self) -> float | None:
        """The most memory that the process had; None where the engine's is another one's."""
        return None if self._on_gpu else peak_mb(default_device())

    def close(self) -> None:
        """Give the engine's memory back."""
        with suppress(Exception):  # an engine in this process has nothing to shut down
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()

    def _serve(self, batch: Batch, new_tokens: int) -> tuple[list[Any], float]:
        from vllm import SamplingParams

        job, first = self._job, 0
        if batch.fresh:
            first, self._fresh = self._fresh, self._fresh + batch.count
        asked = compositions(batch.count, job.requests, batch.subspaces or 1, first)
        is_lora = self._spec.kind == "lora" and batch.count > 0
        settings = [
            SamplingParams(
                max_tokens=new_tokens,
                temperature=0.0,
                ignore_eos=True,
                extra_args=None if text is None or is_lora else {"roadint": text},
            )
            for text in asked
        ]
        loras = [
            self._lora(number % batch.count) for number in range(job.requests if is_lora else 0)
        ]
        prompts: list[Any] = [{"prompt_token_ids": list(ids)} for ids in self._inputs.prompts]
        if self._spec.cached:
            self._llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, settings, use_tqdm=False, lora_request=loras or None)
        return outputs, time.perf_counter() - started

    def _lora(self, number: int) -> Any:
        from vllm.lora.request import LoRARequest

        folders = self._inputs.loras
        return LoRARequest(f"lora {number}", number + 1, folders[number % len(folders)])


def _measure_forward(worker: Any, meter: Meter) -> None:
    """Let a meter measure the forward passes of an engine's worker."""
    runner = worker.model_runner
    runner.execute_model = meter.wrapped("forward", runner.execute_model)


def _print_to(log: str) -> None:
    """What libraries print, and the processes that they start, goes to a file."""
    with open(log, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def tail(log: str) -> str:
    """The end of an engine's log."""
    path = Path(log)
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return "\n".join(lines[-_TAIL:])
