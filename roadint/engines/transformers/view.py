"""A view of a model: a shallow copy with the hooks of one call; the model itself does not change.

torch's hooks belong to a module, and so to everybody who calls it, and compiled code does not see
hooks that come later. A view copies the modules that get hooks and the modules around them. It
shares everything else with the model: parameters, buffers, the other modules, and other libraries'
hooks, which run after the view's and are called with the model's own modules. Copies run
uncompiled; compiled modules below them stay compiled.
"""

import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from roadint.architecture.layers import uncompiled
from roadint.engines.transformers.capture import Capturing
from roadint.engines.transformers.hooks import CopyHooks, TakesKwargs

Before = Callable[[nn.Module, Any, dict[str, Any]], Any]
"""(module, args, kwargs) → None, or (args, kwargs) to take instead."""
After = Callable[[nn.Module, Any, Any], Any]
"""(module, args, output) → None, or an output to give instead."""
Forward = Callable[..., Any]

_NOTHING = object()


@dataclass(frozen=True)
class Copy:
    """A copy of a module.

    Args:
        module: The module that was copied.
        copy: The copy.
        attributes: The attributes that the copy was made with.
    """

    module: nn.Module
    copy: nn.Module
    attributes: dict[str, Any]

    def write_back(self) -> None:
        """Give the module the attributes that the copy's forward has set on the copy.

        Some models keep state in attributes from call to call.
        """
        attributes = vars(self.module)
        for name, value in vars(self.copy).items():
            is_new = value is not self.attributes.get(name, _NOTHING)
            if is_new and not callable(value):  # a method may be bound to the copy
                attributes[name] = value


def write_back(copies: Iterable[Copy]) -> None:
    """Keep, at the end of a call, the attributes that the model's forward has set."""
    for copy in copies:
        copy.write_back()


def view(
    model: nn.Module,
    after: Mapping[nn.Module, Sequence[After]],
    before: Mapping[nn.Module, Sequence[Before]] | None = None,
    forwards: Mapping[nn.Module, Forward] | None = None,
    copies: list[Copy] | None = None,
) -> nn.Module:
    """A shallow copy of a model, with hooks or other forwards at some of its modules.

    Args:
        model: The model, which is not changed.
        after: Hooks after a module's forward.
        before: Hooks before a module's forward.
        forwards: Functions that replace a module's forward.
        copies: The copies that are made are added to it, to write back.
    """
    return _Copying(after, before or {}, forwards or {}, [] if copies is None else copies).of(model)


FOLLOWED_BY = "_followed_by"
"""The attribute of a module of a `followed` class that has what follows its forward."""

_FOLLOWED: dict[type[nn.Module], type[nn.Module]] = {}


def followed(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of copies of modules whose forward is followed by hooks, as part of it.

    Args:
        kind: The class of the modules; or one that this function made.
    """
    if kind in _FOLLOWED.values():
        return kind
    if kind not in _FOLLOWED:

        class Followed(kind):  # type: ignore[misc, valid-type]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                output = kind.forward(self, *args, **kwargs)
                for hook in self._followed_by:
                    result = hook(self, args, output)
                    if result is not None:
                        output = result
                return output

        for name in ("__name__", "__qualname__", "__module__", "__doc__"):  # some models ask
            setattr(Followed, name, getattr(kind, name))
        _FOLLOWED[kind] = Followed
    return _FOLLOWED[kind]


class _Copying:
    def __init__(
        self,
        after: Mapping[nn.Module, Sequence[After]],
        before: Mapping[nn.Module, Sequence[Before]],
        forwards: Mapping[nn.Module, Forward],
        copies: list[Copy],
    ) -> None:
        self._copies = copies
        self._after = {uncompiled(module): hooks for module, hooks in after.items()}
        self._before = {uncompiled(module): hooks for module, hooks in before.items()}
        self._forwards = {uncompiled(module): forward for module, forward in forwards.items()}
        self._wanted = {*self._after, *self._before, *self._forwards}
        self._done: dict[nn.Module, nn.Module] = {}

    def of(self, module: nn.Module) -> nn.Module:
        """The module's copy, or the module itself where nothing in it differs."""
        done = self._done.get(module)
        if done is not None:
            return done
        plain = uncompiled(module)
        children = None
        for name, child in plain._modules.items():
            if child is not None and (child._modules or child in self._wanted):
                copy = self.of(child)
                if copy is not child:
                    children = children or dict(plain._modules)
                    children[name] = copy
        differs = plain is not module or children is not None or plain in self._wanted
        result = self._copy(plain, children) if differs else module
        self._done[module] = self._done[plain] = result
        return result

    def _copy(self, module: nn.Module, children: dict[str, nn.Module | None] | None) -> nn.Module:
        # Those of a view that the module is a copy in come after this one's.
        after = (*self._after.get(module, ()), *vars(module).get(FOLLOWED_BY, ()))
        is_own = module in self._forwards or "forward" in vars(module)
        # torch runs hooks in a slower way than a leaf's forward.
        is_followed = bool(after) and not module._modules and not is_own
        kind = followed(type(module)) if is_followed else type(module)
        copy: nn.Module = object.__new__(kind)
        state = vars(copy)
        state.update(vars(module))
        state["_compiled_call_impl"] = None
        state.pop(FOLLOWED_BY, None)
        if is_followed:
            state[FOLLOWED_BY], after = after, ()
        if children is not None:
            state["_modules"] = children
        if "forward" in state:  # set by accelerate or kernels, bound to the module
            for name in ("forward", "_old_forward"):
                state[name] = _rebound(state.get(name), module, copy)
        if module in self._forwards:
            state["forward"] = self._forwards[module]
        # In a view of a view, too, this is the caller's module.
        origin = state["_viewed"] = state.get("_viewed", module)
        self._add_hooks(state, module, origin, after)
        if children is not None or not isinstance(module, nn.Linear):
            self._copies.append(Copy(origin, copy, dict(state)))
        return copy

    def _add_hooks(
        self,
        state: dict[str, Any],
        module: nn.Module,
        origin: nn.Module,
        after: Sequence[After],
    ) -> None:
        before = self._before.get(module, ())
        if isinstance(module, PreTrainedModel):
            before = [Capturing(origin), *before]
        state["_forward_hooks"] = CopyHooks(after, module._forward_hooks, module)
        state["_forward_pre_hooks"] = CopyHooks(before, module._forward_pre_hooks, module)
        if before:
            takes_kwargs = TakesKwargs(module._forward_pre_hooks_with_kwargs)
            state["_forward_pre_hooks_with_kwargs"] = takes_kwargs
        for name in ("_backward_hooks", "_backward_pre_hooks"):
            if state[name]:
                state[name] = CopyHooks((), state[name], module)


def _rebound(function: Any, module: nn.Module, copy: nn.Module) -> Any:
    """A bound method or a partial of a module as one of its copy; anything else as it is.

    What torch.compile made of one runs uncompiled, as the copies of compiled modules do.
    """
    function = getattr(function, "_torchdynamo_orig_callable", function)
    if isinstance(function, types.MethodType) and function.__self__ is module:
        return types.MethodType(function.__func__, copy)
    if isinstance(function, functools.partial) and any(arg is module for arg in function.args):
        args = (copy if arg is module else arg for arg in function.args)
        return functools.partial(function.func, *args, **function.keywords)
    return function
