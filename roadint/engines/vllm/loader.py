"""Models are armed when an engine loads them (needs vLLM)."""

import functools
from typing import Any

from roadint.engines.vllm.settings import Settings
from roadint.engines.vllm.v2 import use_road_model_state
from roadint.engines.vllm.worker import ATTRIBUTE, RoadWorker


def wrap_loader(loader: Any) -> None:
    """Arm models when they are loaded: before they are profiled, compiled and captured.

    Args:
        loader: vLLM's class.
    """
    load = loader.load_model

    @functools.wraps(load)
    def load_model(self: Any, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        model = load(self, vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        settings = Settings.of(vllm_config.additional_config)
        if settings is not None and model_config is vllm_config.model_config:
            worker = RoadWorker(model, vllm_config, settings)
            # Not a submodule: nothing of it is a weight.
            object.__setattr__(model, ATTRIBUTE, worker)
            use_road_model_state(model, vllm_config, worker)
        return model

    loader.load_model = load_model
