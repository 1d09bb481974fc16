"""Engines in which an edit would act wrongly, or not at all, do not start."""

from types import SimpleNamespace
from typing import Any

import pytest

from roadint import RoadError
from roadint.engines.vllm.refusals import check_engine
from roadint.engines.vllm.versions import TESTED, check_version


def engine(**changed: Any) -> Any:
    """vLLM's configuration; a name with a dot is a field of a part of it."""
    parts: dict[str, dict[str, Any]] = {
        "parallel_config": {
            "pipeline_parallel_size": 1,
            "decode_context_parallel_size": 1,
            "prefill_context_parallel_size": 1,
            "use_ubatching": False,
            "use_sequence_parallel_moe": False,
        },
        "cache_config": {"kv_sharing_fast_prefill": False},
        "model_config": {
            "runner_type": "generate",
            "is_encoder_decoder": False,
            "is_diffusion": False,
            "enable_sleep_mode": False,
        },
    }
    whole: dict[str, Any] = {"speculative_config": None, "kv_transfer_config": None}
    for path, value in changed.items():
        part, _, name = path.partition("__")
        if name:
            parts[part][name] = value
        else:
            whole[part] = value
    made = {name: SimpleNamespace(**fields) for name, fields in parts.items()}
    return SimpleNamespace(**made, **whole)


def offload(backend: str, group: int) -> Any:
    return SimpleNamespace(
        offload_backend=backend, prefetch=SimpleNamespace(offload_group_size=group)
    )


def test_a_plain_engine_is_served() -> None:
    check_engine(engine())
    for backend, group in (("auto", 0), ("uva", 8)):
        check_engine(engine(offload_config=offload(backend, group)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline_parallel_size > 1: .*tensor_"),
        ({"parallel_config__decode_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__use_ubatching": True}, "micro-batch overlap"),
        ({"parallel_config__use_sequence_parallel_moe": True}, "sequence parallelism"),
        ({"cache_config__kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill"),
        ({"model_config__is_diffusion": True}, "a diffusion model"),
        (
            {"offload_config": offload("prefetch", 0)},
            "weights that are offloaded and fetched ahead",
        ),
        ({"offload_config": offload("auto", 8)}, "weights that are offloaded and fetched ahead"),
        ({"model_config__enable_sleep_mode": True}, "sleep mode: .*drops the tables"),
        ({"model_config__runner_type": "pooling"}, "a pooling model"),
        ({"model_config__is_encoder_decoder": True}, "an encoder-decoder model"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_transfer_config": object()}, "a KV connector"),
    ],
)
def test_what_is_refused(changed: Any, message: str) -> None:
    with pytest.raises(RoadError, match=f"roadint can't serve with {message}.*expected an engine"):
        check_engine(engine(**changed))


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.3", "0.320.0", "1.0", ""])
def test_versions_that_were_not_tested(version: str) -> None:
    with pytest.raises(RoadError, match=rf"vLLM {version}: .*pip install 'vllm=="):
        check_version(version)


@pytest.mark.parametrize("version", [f"{release}.{last}" for release in TESTED for last in "01"])
def test_versions_that_were(version: str) -> None:
    check_version(version)
    check_version(f"{version}+cpu")
