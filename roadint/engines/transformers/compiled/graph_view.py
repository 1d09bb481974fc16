"""A lasting view of a model whose modules turn their outputs: code that torch can compile.

As in roadint.engines.transformers.view, modules are copied shallowly, and the caller's model does
not change. In place of hooks, which compiled code is not guarded against, copies have classes
of their own, and the view outlives a call, so that its graphs do.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from roadint.architecture.layers import uncompiled
from roadint.engines.transformers.compiled.places import Place
from roadint.engines.transformers.view import FOLLOWED_BY, followed

_OWN = ("_modules", "_compiled_call_impl")  # attributes that a copy has of its own
_INERT = "transformers.utils.output_capturing"  # its hooks do nothing unless outputs are asked for


@dataclass
class _Copied:
    """A module and its copy.

    Args:
        module: The module.
        copy: The copy.
        children: The module's children.
        attributes: The attributes of the module that the copy has taken over.
    """

    module: nn.Module
    copy: nn.Module
    children: dict[str, nn.Module | None]
    attributes: dict[str, Any]

    def is_current(self) -> bool:
        """Whether the copy still stands for its module, whose other attributes it takes over."""
        children, state, seen = self.module._modules, vars(self.module), self.attributes
        if children.keys() != self.children.keys():
            return False
        if not all(map(operator.is_, children.values(), self.children.values())):
            return False
        if len(state) == len(seen) and all(map(operator.is_, state.values(), seen.values())):
            return True
        if state.get("forward") is not seen.get("forward"):
            return False
        of_copy = vars(self.copy)
        for name in (seen.keys() - state.keys()) - set(_OWN):
            of_copy.pop(name, None)
        for name, value in state.items():
            if name not in _OWN and not (name in seen and value is seen[name]):
                of_copy[name] = value
        self.attributes = dict(state)
        return True


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
        self._copies: list[_Copied] = []
        self._model = uncompiled(model)
        self._all = list(self._model.named_modules())
        self.root = self._copy(self._model, self._children(self._model))

    def is_current(self) -> bool:
        """Whether the model still has the modules of the view; takes over what else changed."""
        return all(copied.is_current() for copied in self._copies)

    def hooked(self) -> str | None:
        """The path of a module that has a hook now, which compiled code would not see come and go.

        None where there is none.
        """
        for path, module in self._all:
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                if hooks and any(getattr(h, "__module__", "") != _INERT for h in hooks.values()):
                    return path or type(module).__name__
        return None

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
        self._copies.append(_Copied(module, copy, dict(module._modules), dict(vars(module))))
        return copy
