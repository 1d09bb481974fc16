"""Isolation of trainings: one at a time, and no traces on the model."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

alone = threading.RLock()
"""Held by the training that runs in this process: accelerate's state and torch's generator are the
process's."""

_SET_BY_ACCELERATE = ("forward", "_original_forward", "_is_accelerate_prepared")


@contextmanager
def unchanged(system: nn.Module) -> Iterator[None]:
    """Undo afterwards what Trainer and accelerate set on a model.

    They set modes, configurations, and a forward in half precision.

    Args:
        system: A RoadModel, or another module with a transformers model as its `model`.
    """
    modes = {module: module.training for module in system.modules()}
    forwards = {name: vars(system)[name] for name in _SET_BY_ACCELERATE if name in vars(system)}
    model = getattr(system, "model", None)
    configs = [getattr(model, name, None) for name in ("config", "generation_config")]
    restores = [_restorer(config) for config in configs if config is not None]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name in _SET_BY_ACCELERATE:
            vars(system).pop(name, None)
        vars(system).update(forwards)
        for restore in restores:
            restore()


def _restorer(config: Any) -> Callable[[], None]:
    before = dict(vars(config))

    def restore() -> None:
        for name in set(vars(config)) - set(before):
            delattr(config, name)
        for name, value in before.items():
            if vars(config).get(name, config) is not value:
                setattr(config, name, value)

    return restore


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter of a model require gradients inside the context.

    Args:
        model: The base model.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
