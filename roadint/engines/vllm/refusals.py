"""Settings of an engine with which an edit could act wrongly, or not at all."""

from collections.abc import Callable
from typing import Any

from roadint.errors import RoadError

_REASONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pipeline_parallel_size > 1": (
        lambda config: config.parallel_config.pipeline_parallel_size > 1,
        "edits were not tested with layers in several processes; tensor_parallel_size works",
    ),
    "context parallelism": (
        lambda config: (
            config.parallel_config.decode_context_parallel_size > 1
            or config.parallel_config.prefill_context_parallel_size > 1
        ),
        "a process would have other tokens than the rest",
    ),
    "micro-batch overlap": (
        lambda config: config.parallel_config.use_ubatching,
        "the two halves of a step would read one table",
    ),
    "sequence parallelism": (
        lambda config: bool(config.parallel_config.use_sequence_parallel_moe),
        "a process would have other tokens at a site than in the step",
    ),
    "kv_sharing_fast_prefill": (
        lambda config: config.cache_config.kv_sharing_fast_prefill,
        "some layers would run a part of a step's tokens",
    ),
    "weights that are offloaded and fetched ahead": (
        lambda config: _fetches_ahead(getattr(config, "offload_config", None)),
        "an edited layer would fetch no weights for those after it; cpu_offload_gb works",
    ),
    "a diffusion model": (
        lambda config: config.model_config.is_diffusion,
        "it computes a token many times",
    ),
    "sleep mode": (
        lambda config: config.model_config.enable_sleep_mode,
        "a model that sleeps drops the tables of its edits",
    ),
    "speculative decoding": (
        lambda config: config.speculative_config is not None,
        "the ranks of drafted tokens are not known when a step begins",
    ),
    "a KV connector": (
        lambda config: config.kv_transfer_config is not None,
        "it keys blocks by their tokens alone, and would mix compositions up",
    ),
    "a pooling model": (
        lambda config: config.model_config.runner_type != "generate",
        "its requests can't say what acts",
    ),
    "an encoder-decoder model": (
        lambda config: bool(config.model_config.is_encoder_decoder),
        "edits are those of decoder-only models",
    ),
}


def _fetches_ahead(offload: Any) -> bool:
    """Whether vLLM gives layers forwards that fetch the weights of others."""
    if offload is None:
        return False
    backend = offload.offload_backend
    return bool(
        backend == "prefetch" or (backend == "auto" and offload.prefetch.offload_group_size > 0)
    )


def check_engine(vllm_config: Any) -> None:
    """Refuse an engine in which an edit could not act, or act wrongly.

    Args:
        vllm_config: The engine's configuration.

    Raises:
        RoadError: where it is such an engine.
    """
    for what, (holds, why) in _REASONS.items():
        if holds(vllm_config):
            raise RoadError(f"roadint can't serve with {what}: {why}; expected an engine without")
