"""What transformers' own models do to themselves while they run, and what of that has to reach the model behind a view's copy."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

_INSTALLED = "_output_capturing_hooks_installed"


class Behind:
    """Hooks of a copy, before and after its forward, that leave `module`, a transformers model, as a call of its own would."""

    def __init__(self, module: nn.Module, copy: nn.Module) -> None:
        self._module, self._before = module, dict(vars(copy))

    def capture(self, copy: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Where the call captures states, hook the model itself: a copy's hooks would stay on what it shares, call by call."""
        if not vars(copy).get(_INSTALLED, False):
            _prepare_capture(self._module, kwargs)
            if vars(self._module).get(_INSTALLED, False):
                vars(copy)[_INSTALLED] = True

    def keep(self, copy: nn.Module, args: Any, output: Any) -> None:
        """Leave with the model what its forward notes for the next one, such as how far an image shifts the positions."""
        for name, value in vars(copy).items():
            if (
                value is not self._before.get(name)
                and not name.startswith("_")
                and isinstance(value, (Tensor, int, float, type(None)))
            ):
                self._before[name] = vars(self._module)[name] = value


def _prepare_capture(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    configs = (getattr(model, "config", None), getattr(model, "generation_config", None), inputs.get("generation_config"))
    told = [*inputs.items(), *(item for each in configs if each is not None for item in _settings(each))]
    if not any(name.startswith("output_") and value is not None and value is not False for name, value in told):
        return
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:
        return
    waiting = deque([model])
    while waiting:
        module = waiting.popleft()
        inside = [each for each in module.modules() if isinstance(each, PreTrainedModel) and each is not module]
        hooked = any(getattr(each, _INSTALLED, False) for each in inside)
        if isinstance(module, PreTrainedModel) and not hooked:
            maybe_install_capturing_hooks(module)
        else:
            waiting.extend(module.children())


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    for each in (config, config.get_text_config()) if hasattr(config, "get_text_config") else (config,):
        yield from (
            (name, getattr(each, name, None)) for name in ("output_hidden_states", "output_attentions", "output_router_logits")
        )
