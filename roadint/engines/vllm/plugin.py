"""The entry point of group `vllm.general_plugins`, which vLLM calls in all of its processes."""

import functools
import logging
from typing import Any

from roadint.engines.vllm.settings import KEY
from roadint.errors import RoadError

logger = logging.getLogger("vllm.roadint")

_registered = False


def register() -> None:
    """Make vLLM serve compositions, where `additional_config` names checkpoints.

    With a version of vLLM that was not tested, engines that ask for roadint are refused, and all
    others stay as they are.
    """
    global _registered
    if _registered:
        return
    _registered = True
    import vllm

    from roadint.engines.vllm.versions import check_signatures, check_version

    try:
        check_version(vllm.__version__)
        check_signatures()
    except RoadError as error:
        _refuse_engines(str(error))
        return
    _wrap()


def _wrap() -> None:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.worker_base import WorkerBase

    from roadint.engines.vllm.core import wrap_block_keys, wrap_engine_core
    from roadint.engines.vllm.front import wrap_input_processor
    from roadint.engines.vllm.loader import wrap_loader
    from roadint.engines.vllm.v1 import wrap_runner
    from roadint.engines.vllm.worker import wrap_worker

    wrap_input_processor(InputProcessor)
    wrap_engine_core(EngineCore)
    wrap_block_keys(kv_cache_utils)
    wrap_loader(BaseModelLoader)
    wrap_worker(WorkerBase)
    wrap_runner(GPUModelRunner)


def _refuse_engines(reason: str) -> None:
    from vllm.config import VllmConfig

    make: Any = VllmConfig.__post_init__

    @functools.wraps(make)
    def __post_init__(self: Any) -> None:
        if isinstance(self.additional_config, dict) and KEY in self.additional_config:
            raise RoadError(reason)
        make(self)

    VllmConfig.__post_init__ = __post_init__
    logger.warning("roadint serves nothing here: %s", reason)
