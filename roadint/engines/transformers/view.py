"""A model with hooks of one call's own: nothing on the caller's model changes, and nobody else who runs it meets them.

torch's hooks belong to a module, and so to everybody who calls it; compiled code does not see those that come later. A view is a
shallow copy of the modules that get hooks and of the modules around them. All else it shares with the model: parameters, buffers,
the other modules, and other libraries' hooks, which are given the model's own modules and run after the view's. Copies run
uncompiled; what is compiled below them stays so.
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

Before = Callable[
    [nn.Module, Any, dict[str, Any]], Any
]  # (module, args, kwargs) → None, or (args, kwargs) instead
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
            if value is not self.made.get(name, _NOTHING) and not callable(
                value
            ):  # a method may be the copy's
                own[name] = value


def write_back(copies: Iterable[Copy]) -> None:
    """At the end of a call: what the model has noted on itself stays."""
    for each in copies:
        each.write_back()


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
        self._after = {uncompiled(module): hooks for module, hooks in after.items()}
        self._before = {uncompiled(module): hooks for module, hooks in before.items()}
        self._forwards = {uncompiled(module): forward for module, forward in forwards.items()}
        self._wanted = {*self._after, *self._before, *self._forwards}
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
        origin = state["_viewed"] = state.get(
            "_viewed", module
        )  # the caller's, of a view of a view too
        if isinstance(module, PreTrainedModel):
            before = [Capturing(origin), *before]
        state["_forward_hooks"] = _Hooks(after, module._forward_hooks, module)
        state["_forward_pre_hooks"] = _Hooks(before, module._forward_pre_hooks, module)
        if before:
            state["_forward_pre_hooks_with_kwargs"] = _WithKwargs(
                module._forward_pre_hooks_with_kwargs
            )
        for name in ("_backward_hooks", "_backward_pre_hooks"):
            if state[name]:
                state[name] = _Hooks((), state[name], module)
        if children is not None or not isinstance(module, nn.Linear):
            self._copies.append(Copy(origin, copy, dict(state)))
        return copy


class _Foreign:
    """Somebody's hook on a module, which it is given in the place of the module's copy."""

    def __init__(self, hook: Callable[..., Any], module: nn.Module) -> None:
        self._hook, self._module = hook, module

    def __call__(self, copy: nn.Module, *rest: Any) -> Any:
        before = dict(vars(self._module))
        result = self._hook(self._module, *rest)
        for name, value in dict(vars(self._module)).items():
            if value is not before.get(
                name, _NOTHING
            ):  # as weight norms and prunings set a weight before each forward
                vars(copy)[name] = value
        return result


class _Hooks(dict[int, Callable[..., Any]]):
    """A copy's hooks: its own, then those that its module has at the moment, which come and go in the middle of a call.

    A view of a view keeps that one's own ones, behind the new.
    """

    def __init__(
        self,
        own: Sequence[Callable[..., Any]],
        theirs: Mapping[int, Callable[..., Any]],
        module: nn.Module,
    ) -> None:
        for place, hook in enumerate(own):
            self[-1 - place] = hook  # torch's own numbers begin at 0
        self._theirs, self._module = theirs, module

    def __len__(self) -> int:
        return super().__len__() + len(self._theirs)

    def __bool__(self) -> bool:
        return bool(dict.__len__(self) or self._theirs)

    def items(self) -> Any:
        """All of them, as they are now."""
        return self._all().items() if self._theirs else super().items()

    def values(self) -> Any:
        """As `items`."""
        return self._all().values() if self._theirs else super().values()

    def _all(self) -> dict[int, Callable[..., Any]]:
        found = dict(super().items())
        for number, hook in self._theirs.items():
            own = number < 0
            found[number - _NEWER if own else number] = (
                hook if own or isinstance(hook, _Foreign) else _Foreign(hook, self._module)
            )
        return found


class _WithKwargs(dict[int, bool]):
    """Which of a copy's hooks before its forward take keyword arguments: all of its own."""

    def __init__(self, theirs: Mapping[int, bool]) -> None:
        super().__init__()
        self._theirs = theirs

    def __contains__(self, number: object) -> bool:
        return (
            number in self._theirs
            or (isinstance(number, int) and number < 0)
            or super().__contains__(number)
        )


def _rebound(function: Any, module: nn.Module, copy: nn.Module) -> Any:
    """A bound method or a partial of `module` as one of its copy; anything else as it is."""
    if isinstance(function, types.MethodType) and function.__self__ is module:
        return types.MethodType(function.__func__, copy)
    if isinstance(function, functools.partial) and any(each is module for each in function.args):
        args = (copy if each is module else each for each in function.args)
        return functools.partial(function.func, *args, **function.keywords)
    return function
