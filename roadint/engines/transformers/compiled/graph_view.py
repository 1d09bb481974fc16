"""A lasting view of a model whose modules turn their outputs: code that torch can compile.

As in roadint.engines.transformers.view, modules are copied shallowly, and the caller's model does
not change. In place of hooks, which compiled code is not guarded against, copies have classes
of their own, and the view outlives a call, so that its graphs do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from roadint.architecture.layers import uncompiled
from roadint.engines.transformers.compiled.places import Place
from roadint.engines.transformers.view import FOLLOWED_BY, followed


class GraphView:
    """The view.

    Args:
        model: The caller's model.
        places: Module → what turns its output, in order.

    Attributes:
        root: The view of the model itself.
        patched: The path of a module that has a forward of its own, as accelerate's offload gives
            it, which a view can't copy; None without.
    """

    def __init__(self, model: nn.Module, places: Mapping[nn.Module, Sequence[Place]]) -> None:
        self.patched: str | None = None
        self._places = {uncompiled(module): tuple(turns) for module, turns in places.items()}
        self._done: dict[nn.Module, nn.Module] = {}
        self._copies: list[tuple[nn.Module, nn.Module, dict[str, Any]]] = []
        self._model = uncompiled(model)
        self.root = self._copy(self._model, self._children(self._model))

    def is_current(self) -> bool:
        """Whether the model still has the modules of the view; takes over its mode and settings."""
        for module, copy, children in self._copies:
            if module._modules.keys() != children.keys():
                return False
            if any(module._modules[name] is not child for name, child in children.items()):
                return False
            if copy.training != module.training:
                copy.training = module.training
        for name in ("config", "generation_config"):
            if name in vars(self._model):
                vars(self.root)[name] = vars(self._model)[name]
        return True

    def _of(self, module: nn.Module) -> nn.Module:
        """The module's copy, or the module itself where nothing in it turns."""
        plain = uncompiled(module)
        if plain not in self._done:
            children = self._children(plain)
            differs = plain is not module or plain in self._places
            differs |= any(child is not plain._modules[name] for name, child in children.items())
            self._done[plain] = self._copy(plain, children) if differs else module
        return self._done[plain]

    def _children(self, module: nn.Module) -> dict[str, nn.Module | None]:
        return {
            name: None if child is None else self._of(child)
            for name, child in module._modules.items()
        }

    def _copy(self, module: nn.Module, children: dict[str, nn.Module | None]) -> nn.Module:
        places = self._places.get(module, ())
        kind = type(module)
        copy: nn.Module = object.__new__(followed(kind) if places else kind)
        state = vars(copy)
        state.update(vars(module))
        state.update(_compiled_call_impl=None, _modules=children)
        if places:
            state[FOLLOWED_BY] = places
        if "forward" in state and self.patched is None:
            self.patched = type(module).__name__
        self._copies.append((module, copy, dict(module._modules)))
        return copy
