"""A model with hooks of one call's own: nothing on the caller's model changes, and nobody else who runs it meets them.

torch's hooks belong to a module, and so to everybody who calls it; compiled code does not see those that come later. A view is a
shallow copy of the modules that get hooks and of the modules around them. All else it shares with the model: parameters, buffers,
the other modules, and other libraries' hooks, which are given the model's own modules and run after the view's. Copies run
uncompiled; what is compiled below them stays so.
"""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Before = Callable[[nn.Module, Any, dict[str, Any]], Any]  # (module, args, kwargs) → None, or (args, kwargs) instead
After = Callable[[nn.Module, Any, Any], Any]  # (module, args, output) → None, or an output instead
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Copy:
    """A module, its copy, and the attributes that the copy was made with."""

    module: nn.Module
    copy: nn.Module
    made: dict[str, Any]

    def write_back(self) -> None:
        """Give the module what its copy's forward has noted on itself, as some models keep state from call to call."""
        own = vars(self.module)
        for name, value in vars(self.copy).items():
            if value is not self.made.get(name, _NOTHING):
                own[name] = value


def view(
    model: nn.Module,
    after: Mapping[nn.Module, Sequence[After]],
    before: Mapping[nn.Module, Sequence[Before]] | None = None,
    forwards: Mapping[nn.Module, Forward] | None = None,
    copies: list[Copy] | None = None,
) -> nn.Module:
    """A copy of `model` that differs in these modules of it: hooks before and after their forward, or another forward.

    copies: gets the copies that were made, to write back.
    """
    return _Copying(after, before or {}, forwards or {}, [] if copies is None else copies).of(model)


def uncompiled(module: nn.Module) -> nn.Module:
    """What torch.compile(module) was made of, or the module itself."""
    return module._modules["_orig_mod"] if type(module).__name__ == "OptimizedModule" else module  # type: ignore[return-value]


_NOTHING = object()
_NEWER = 1000  # more hooks than a view has at a module


class _Copying:
    def __init__(
        self,
        after: Mapping[nn.Module, Sequence[After]],
        before: Mapping[nn.Module, Sequence[Before]],
        forwards: Mapping[nn.Module, Forward],
        copies: list[Copy],
    ) -> None:
        self._copies = copies
        self._after, self._before, self._forwards = after, before, forwards
        self._wanted = {*after, *before, *forwards}
        self._done: dict[nn.Module, nn.Module] = {}

    def of(self, module: nn.Module) -> nn.Module:
        """The module's copy, or itself where nothing in it is another."""
        found = self._done.get(module)
        if found is not None:
            return found
        own = uncompiled(module)
        children = None
        for name, child in own._modules.items():
            if child is not None and (child._modules or child in self._wanted):
                copied = self.of(child)
                if copied is not child:
                    children = children or dict(own._modules)
                    children[name] = copied
        changed = own is not module or children is not None or own in self._wanted
        found = self._copy(own, children) if changed else module
        self._done[module] = self._done[own] = found
        return found

    def _copy(self, module: nn.Module, children: dict[str, nn.Module | None] | None) -> nn.Module:
        copy: nn.Module = object.__new__(type(module))
        state = vars(copy)
        state.update(vars(module))
        state["_compiled_call_impl"] = None
        if children is not None:
            state["_modules"] = children
        if "forward" in state:  # accelerate's and the kernels' own, bound to the module
            for name in ("forward", "_old_forward"):
                state[name] = _rebound(state.get(name), module, copy)
        if module in self._forwards:
            state["forward"] = self._forwards[module]
        after, before = self._after.get(module, ()), self._before.get(module, ())
        if after or module._forward_hooks:
            own: dict[int, Any] = {-1 - place: hook for place, hook in enumerate(after)}  # torch's own numbers begin at 0
            state["_forward_hooks"] = {**own, **_to(module, module._forward_hooks)}
        if before or module._forward_pre_hooks:
            own = {-1 - place: hook for place, hook in enumerate(before)}
            hooks = state["_forward_pre_hooks"] = {**own, **_to(module, module._forward_pre_hooks)}
            ours = {number: True for number in hooks if number < 0}
            state["_forward_pre_hooks_with_kwargs"] = {**module._forward_pre_hooks_with_kwargs, **ours}
        if children is not None or not isinstance(module, nn.Linear):
            self._copies.append(Copy(module, copy, dict(state)))
        return copy


class _Foreign:
    """Somebody's hook on a module, which it is given in the place of the module's copy."""

    def __init__(self, hook: Callable[..., Any], module: nn.Module) -> None:
        self._hook, self._module = hook, module

    def __call__(self, copy: nn.Module, *rest: Any) -> Any:
        before = dict(vars(self._module))
        result = self._hook(self._module, *rest)
        for name, value in dict(vars(self._module)).items():
            if value is not before.get(name, _NOTHING):  # as weight norms and prunings set a weight before each forward
                vars(copy)[name] = value
        return result


def _to(module: nn.Module, hooks: Mapping[int, Callable[..., Any]]) -> dict[int, Callable[..., Any]]:
    """The hooks that a module has; a view of a view keeps its own ones, behind the new."""
    found = {}
    for number, hook in hooks.items():
        own = number < 0
        found[number - _NEWER if own else number] = hook if own or isinstance(hook, _Foreign) else _Foreign(hook, module)
    return found


def _rebound(function: Any, module: nn.Module, copy: nn.Module) -> Any:
    """A bound method or a partial of `module` as one of its copy; anything else as it is."""
    if isinstance(function, types.MethodType) and function.__self__ is module:
        return types.MethodType(function.__func__, copy)
    if isinstance(function, functools.partial) and any(each is module for each in function.args):
        args = (copy if each is module else each for each in function.args)
        return functools.partial(function.func, *args, **function.keywords)
    return function
