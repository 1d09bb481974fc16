"""Hidden states and attentions that transformers captures with hooks of its own.

transformers puts these hooks on a model at the first call that captures something.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_INSTALLED = "_output_capturing_hooks_installed"
_CAPTURED = ("output_hidden_states", "output_attentions", "output_router_logits")


class Capturing:
    """A hook before the forward of a copy: where a call captures states, it hooks the model itself.

    Hooks on the copy would stay on the modules that it shares with the model, call by call.

    Args:
        module: What was copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, copy: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Run before transformers asks whether the copy is hooked."""
        if not vars(copy).get(_INSTALLED, False):
            _install(self._module, kwargs)
            if vars(self._module).get(_INSTALLED, False):
                vars(copy)[_INSTALLED] = True


def _install(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Have transformers hook the model, where the call's arguments or a configuration capture."""
    if not _captures(model, inputs):
        return
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # an older transformers, whose models capture by themselves
        return
    waiting = deque([model])
    while waiting:
        module = waiting.popleft()
        inside = [m for m in module.modules() if isinstance(m, PreTrainedModel) and m is not module]
        hooked = any(getattr(inner, _INSTALLED, False) for inner in inside)
        if isinstance(module, PreTrainedModel) and not hooked:
            maybe_install_capturing_hooks(module)
        else:
            waiting.extend(module.children())


def _captures(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    settings = list(inputs.items())
    for config in (
        getattr(model, "config", None),
        getattr(model, "generation_config", None),
        inputs.get("generation_config"),
    ):
        settings += [] if config is None else _settings(config)
    return any(
        name.startswith("output_") and value is not None and value is not False
        for name, value in settings
    )


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    configs = [config]
    if hasattr(config, "get_text_config"):
        configs.append(config.get_text_config())
    for config in configs:
        yield from ((name, getattr(config, name, None)) for name in _CAPTURED)
