"""The front of an engine: reads what requests ask for, and refuses what can't act (needs vLLM)."""

import functools
import sys
from collections.abc import Mapping
from typing import Any

from roadint.engines.vllm.refusals import check_engine
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.served import Base
from roadint.engines.vllm.settings import KEY, Settings
from roadint.errors import RoadError, did_you_mean, quoted

_PROTOCOLS = (
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"),
    ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest"),
)


def base_of(vllm_config: Any) -> Base:
    """What an engine's configuration says of its model."""
    config = vllm_config.model_config.hf_text_config
    return Base(config.hidden_size, config.num_hidden_layers, config.model_type)


def registry_of(vllm_config: Any) -> Registry | None:
    """The checkpoints that an engine's configuration names; None where it says nothing of roadint.

    Raises:
        RoadError: where it is malformed, a checkpoint can't be served, or the engine can't edit.
    """
    settings = Settings.of(vllm_config.additional_config)
    if settings is None:
        return None
    check_engine(vllm_config)
    return Registry.of(settings, base_of(vllm_config))


def prompt_length_of(request: Any) -> int:
    """The length of the prompt of an engine's request, in tokens."""
    tokens = request.prompt_token_ids
    return len(tokens if tokens is not None else request.prompt_embeds)


def check_arguments(extra: Mapping[str, Any]) -> None:
    """Refuse arguments that were meant for roadint, which would answer as the base model else.

    Args:
        extra: A request's further arguments, those for others among them.

    Raises:
        RoadError: where one has almost the name of roadint's.
    """
    for name in extra:
        if name != KEY and (name == "compose" or did_you_mean(str(name).lower(), [KEY])):
            raise RoadError(f"a request has {quoted(name)}: expected {{{KEY!r}: a composition}}")


def wrap_input_processor(processor: type) -> None:
    """Make an input processor read what requests ask for.

    Args:
        processor: vLLM's class.
    """
    make, process = processor.__init__, processor.process_inputs  # type: ignore[misc, attr-defined]

    @functools.wraps(make)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        self.roadint = registry_of(vllm_config)
        _refuse_beams()
        make(self, vllm_config, *args, **kwargs)

    @functools.wraps(process)
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        request = process(self, request_id, prompt, params, *args, **kwargs)
        extra = getattr(params, "extra_args", None)
        if extra:
            _resolve(self.roadint, extra, request)
        return request

    processor.__init__ = __init__  # type: ignore[misc]
    processor.process_inputs = process_inputs  # type: ignore[attr-defined]


def _resolve(registry: Registry | None, extra: Mapping[str, Any], request: Any) -> None:
    """Put what a request asks for into it, as it travels."""
    from vllm.exceptions import VLLMValidationError

    asked = extra.get(KEY)
    try:
        if registry is not None:
            check_arguments(extra)
        if asked is None:
            return
        if registry is None:
            raise RoadError(
                f"the engine has no checkpoints: expected additional_config={{{KEY!r}: "
                "{'checkpoints': …}}"
            )
        if getattr(request, "resumable", False):
            raise RoadError("a prompt that grows has no end yet: expected a whole prompt")
        resolved = registry.resolve(asked, prompt_length_of(request))
    except RoadError as error:
        # Without the value: the message quotes it, and shortens it where it is long.
        raise VLLMValidationError(str(error), parameter=KEY) from None
    params = request.sampling_params
    params.extra_args = {**params.extra_args, KEY: resolved}


def _refuse_beams() -> None:
    """A beam search makes requests of its own, without what the request asks for."""
    for module, name in _PROTOCOLS:
        if module in sys.modules:
            _refuse_beams_of(getattr(sys.modules[module], name))


def _refuse_beams_of(protocol: Any) -> None:
    make = protocol.to_beam_search_params
    if getattr(make, "refuses_roadint", False):
        return

    @functools.wraps(make)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.exceptions import VLLMValidationError

        if (self.vllm_xargs or {}).get(KEY) is not None:
            raise VLLMValidationError(
                "a beam search can't be edited: expected use_beam_search=false", parameter=KEY
            )
        return make(self, *args, **kwargs)

    to_beam_search_params.refuses_roadint = True  # type: ignore[attr-defined]
    protocol.to_beam_search_params = to_beam_search_params
