"""Hidden states, attentions and more that transformers captures with hooks, which it puts on a model at the first such call."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_INSTALLED = "_output_capturing_hooks_installed"


class Capturing:
    """A hook before the forward of a copy of `module`: where the call captures states, transformers hooks the model itself.

    A copy's hooks would stay on what it shares, call by call.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, copy: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before transformers asks whether the copy is hooked."""
        if not vars(copy).get(_INSTALLED, False):
            _prepare_capture(self._module, kwargs)
            if vars(self._module).get(_INSTALLED, False):
                vars(copy)[_INSTALLED] = True


def _prepare_capture(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    configs = (
        getattr(model, "config", None),
        getattr(model, "generation_config", None),
        inputs.get("generation_config"),
    )
    told = [
        *inputs.items(),
        *(item for each in configs if each is not None for item in _settings(each)),
    ]
    if not any(
        name.startswith("output_") and value is not None and value is not False
        for name, value in told
    ):
        return
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:
        return
    waiting = deque([model])
    while waiting:
        module = waiting.popleft()
        inside = [
            each
            for each in module.modules()
            if isinstance(each, PreTrainedModel) and each is not module
        ]
        hooked = any(getattr(each, _INSTALLED, False) for each in inside)
        if isinstance(module, PreTrainedModel) and not hooked:
            maybe_install_capturing_hooks(module)
        else:
            waiting.extend(module.children())


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    for each in (
        (config, config.get_text_config()) if hasattr(config, "get_text_config") else (config,)
    ):
        yield from (
            (name, getattr(each, name, None))
            for name in ("output_hidden_states", "output_attentions", "output_router_logits")
        )
