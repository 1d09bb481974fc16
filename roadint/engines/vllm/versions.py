"""The versions of vLLM that roadint was tested with, and what it holds on to in them."""

import importlib
import inspect
from typing import Any

from roadint.errors import RoadError, listing

TESTED = ("0.32",)
"""The releases, by the beginning of their versions."""

# What is wrapped or called → the names of its arguments.
_SIGNATURES = {
    "vllm.model_executor.model_loader.base_loader:BaseModelLoader.load_model": (
        "self vllm_config model_config prefix"
    ),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states": "self scheduler_output",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs": (
        "self scheduler_output num_scheduled_tokens"
    ),
    "vllm.v1.core.kv_cache_utils:generate_block_hash_extra_keys": (
        "request start_token_idx end_token_idx start_mm_idx"
    ),
    "vllm.v1.engine.core:EngineCore._initialize_kv_caches": "self vllm_config",
    "vllm.v1.engine.core:EngineCore.preprocess_add_request": "self request",
    "vllm.v1.worker.gpu.model_states:resolve_model_state_cls": "vllm_config model",
    "vllm.v1.worker.gpu.model_states.interface:ModelState.add_request": (
        "self req_index new_req_data"
    ),
    "vllm.v1.worker.gpu.model_states.interface:ModelState.remove_request": "self req_id",
    "vllm.v1.worker.gpu.model_states.interface:ModelState.preprocess_state": (
        "self input_batch block_tables kv_cache_config num_computed_tokens"
    ),
    "vllm.v1.worker.gpu.model_states.interface:ModelState.prepare_inputs": (
        "self input_batch req_states"
    ),
    "vllm.v1.worker.gpu.model_states.interface:ModelState.prepare_dummy_inputs": (
        "self num_reqs num_tokens"
    ),
}
_FIRST_ARGUMENTS = {
    "vllm.v1.engine.input_processor:InputProcessor.__init__": "self vllm_config",
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": "self request_id prompt params",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._dummy_run": "self num_tokens",
}


def check_version(version: str) -> None:
    """Refuse a version of vLLM that was not tested.

    Raises:
        RoadError: where it was not.
    """
    if not version.startswith(tuple(f"{release}." for release in TESTED)):
        raise RoadError(
            f"vLLM {version}: roadint was tested with {listing(f'{r}.*' for r in TESTED)}; "
            "expected one of these, such as `pip install 'vllm==0.32.*'`"
        )


def check_signatures() -> None:
    """Check that what roadint wraps takes the arguments that it knows.

    Raises:
        RoadError: where something is missing or takes others.
    """
    for exact, names in ((True, _SIGNATURES), (False, _FIRST_ARGUMENTS)):
        for place, expected in names.items():
            found = list(inspect.signature(_find(place)).parameters)
            wanted = expected.split()
            if (found if exact else found[: len(wanted)]) != wanted:
                raise RoadError(
                    f"vLLM's {place.partition(':')[2]} takes {listing(found)}: expected "
                    f"{listing(wanted)}, as in {listing(f'{r}.*' for r in TESTED)}"
                )


def _find(place: str) -> Any:
    module, _, path = place.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise RoadError(f"vLLM has no {place}: expected one of {listing(TESTED)}")
    return found
