"""Hidden states and attentions that transformers captures (output_hidden_states and the like).

transformers captures with hooks, which it puts on a model at the first call that asks for them.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_INSTALLED = "_output_capturing_hooks_installed"
_OF_GENERATE = ("output_scores", "output_logits")  # what generate returns of its own
_CAPTURED = ("output_hidden_states", "output_attentions", "output_router_logits")


class Capturing:
    """A hook before the forward of a copy: has transformers put its hooks on the model itself.

    On the copy they would accumulate, call by call, on the modules that it shares with the model.

    Args:
        module: The module that was copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, copy: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Hook the model before transformers looks for hooks on the copy."""
        if not vars(copy).get(_INSTALLED, False):
            _install(self._module, kwargs)
            if vars(self._module).get(_INSTALLED, False):
                vars(copy)[_INSTALLED] = True


def _install(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Have transformers hook the model where arguments or a configuration ask to capture."""
    if not captures(model, inputs):
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


def captures(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether arguments or a configuration ask for hidden states, attentions or the like."""
    settings = list(inputs.items())
    for config in (
        getattr(model, "config", None),
        getattr(model, "generation_config", None),
        inputs.get("generation_config"),
    ):
        settings += [] if config is None else _settings(config)
    return any(
        name.startswith("output_")
        and name not in _OF_GENERATE
        and value is not None
        and value is not False
        for name, value in settings
    )


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    configs = [config]
    if hasattr(config, "get_text_config"):
        configs.append(config.get_text_config())
    for config in configs:
        yield from ((name, getattr(config, name, None)) for name in _CAPTURED)
