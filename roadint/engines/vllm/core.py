"""The core of an engine: keys of the prefix cache, checkpoints that come and go (needs vLLM)."""

import functools
import sys
from typing import Any

from roadint.engines.vllm.front import prompt_length_of, registry_of
from roadint.engines.vllm.rows.prompt_edits import PromptEdits, prompt_edits
from roadint.engines.vllm.served import open_served
from roadint.engines.vllm.settings import KEY
from roadint.errors import RoadError, first_line


class Keyed(dict[str, Any]):
    """What a request asks for, and the edits that its blocks are keyed by.

    In another process it is a plain mapping.
    """

    edits: PromptEdits

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def asked_of(params: Any) -> Any:
    """What a request's sampling parameters ask for, resolved; None for the base model."""
    return (getattr(params, "extra_args", None) or {}).get(KEY)


def wrap_engine_core(core: Any) -> None:
    """Make an engine's core check requests, and load and unload checkpoints.

    Args:
        core: vLLM's class.
    """
    # A part of the core's __init__: in a process of its own, that runs already when vLLM calls us.
    prepare, preprocess = core._initialize_kv_caches, core.preprocess_add_request

    @functools.wraps(prepare)
    def _initialize_kv_caches(self: Any, vllm_config: Any) -> Any:
        self.roadint = registry_of(vllm_config)
        return prepare(self, vllm_config)

    @functools.wraps(preprocess)
    def preprocess_add_request(self: Any, request: Any) -> Any:
        _key(self.roadint, request)
        return preprocess(self, request)

    core._initialize_kv_caches = _initialize_kv_caches
    core.preprocess_add_request = preprocess_add_request
    core.roadint_load, core.roadint_unload = _load, _unload


def _key(registry: Any, request: Any) -> None:
    """Refuse a request whose checkpoint is gone; make the keys of its blocks otherwise."""
    params = request.sampling_params
    resolved = asked_of(params)
    if resolved is None:
        return
    if registry is None or not isinstance(resolved, dict) or "of" not in resolved:
        raise RoadError("a request's composition did not pass the engine's front")
    keyed = Keyed(resolved)
    keyed.edits = prompt_edits(registry.plan(resolved), prompt_length_of(request))
    params.extra_args = {**params.extra_args, KEY: keyed}


def wrap_block_keys(utils: Any) -> None:
    """Key the blocks of the prefix cache by what is edited in them.

    Args:
        utils: vLLM's module, whose function other modules may have taken already.
    """
    generate = utils.generate_block_hash_extra_keys

    @functools.wraps(generate)
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> Any:
        keys, next_mm_idx = generate(request, start_token_idx, end_token_idx, start_mm_idx)
        asked = asked_of(request.sampling_params)
        own = None if asked is None else asked.edits.key_of_block(start_token_idx, end_token_idx)
        return keys if own is None else (*(keys or ()), *own), next_mm_idx

    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})  # asking some modules for a name imports others
        if names.get("generate_block_hash_extra_keys") is generate:
            names["generate_block_hash_extra_keys"] = generate_block_hash_extra_keys


# What the core's clients call. They answer with values: an exception would lose its type.


def _load(self: Any, label: str, path: str) -> dict[str, Any]:
    """Serve a checkpoint in the core and in all of its workers, or in none."""
    try:
        if self.roadint is None:
            raise RoadError(f"the engine was started without additional_config[{KEY!r}]")
        served = open_served(path, self.roadint.base)
        self.roadint.check_load(label, served)
        errors = self.collective_rpc("roadint_load", args=(label, path, served.fingerprint))
        if any(errors):
            self.collective_rpc("roadint_unload", args=(label, _in_use(self)))
            raise RoadError(next(error for error in errors if error))
        self.roadint.load(label, served)
        return {"about": served.about()}
    except (RoadError, OSError) as error:
        return {"error": str(error) if isinstance(error, RoadError) else first_line(error)}


def _unload(self: Any, label: str) -> dict[str, Any]:
    """Serve a checkpoint no longer; requests that run keep it."""
    try:
        if self.roadint is None:
            raise RoadError(f"the engine was started without additional_config[{KEY!r}]")
        self.roadint.unload(label)
    except RoadError as error:
        return {"error": str(error)}
    in_use = _in_use(self)
    self.roadint.forget(in_use)
    self.collective_rpc("roadint_unload", args=(label, in_use))
    return {}


def _in_use(core: Any) -> list[str]:
    """The fingerprints of the checkpoints that unfinished requests need."""
    asked = [asked_of(request.sampling_params) for request in core.scheduler.requests.values()]
    return sorted({fingerprint for one in asked if one for fingerprint, _ in one["of"]})
