"""The hooks of a module's copy: its own, and those of other libraries on the module itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

Hook = Callable[..., Any]

_NOTHING = object()
_NEWER = 1000  # more hooks than a view has at a module


class ForeignHook:
    """Another library's hook on a module, which gets the module in the place of its copy.

    Args:
        hook: The hook.
        module: What it was put on.
    """

    def __init__(self, hook: Hook, module: nn.Module) -> None:
        self._hook, self._module = hook, module

    def __call__(self, copy: nn.Module, *rest: Any) -> Any:
        """Run the hook, and give the copy what it has noted on the module.

        Weight norms and prunings set a weight so before each forward.
        """
        before = dict(vars(self._module))
        result = self._hook(self._module, *rest)
        for name, value in dict(vars(self._module)).items():
            if value is not before.get(name, _NOTHING):
                vars(copy)[name] = value
        return result


class CopyHooks(dict[int, Hook]):
    """A copy's hooks, and behind them those that its module has at the moment.

    Those come and go in the middle of a call. A view of a view keeps the first one's hooks, behind
    the new ones.

    Args:
        hooks: The copy's.
        module_hooks: The module's.
        module: What was copied.
    """

    def __init__(
        self, hooks: Sequence[Hook], module_hooks: Mapping[int, Hook], module: nn.Module
    ) -> None:
        for index, hook in enumerate(hooks):
            self[-1 - index] = hook  # torch's own numbers begin at 0
        self._module_hooks, self._module = module_hooks, module

    def __len__(self) -> int:
        return super().__len__() + len(self._module_hooks)

    def __bool__(self) -> bool:
        return bool(dict.__len__(self) or self._module_hooks)

    def items(self) -> Any:
        """All of them, as they are now."""
        return self._all().items() if self._module_hooks else super().items()

    def values(self) -> Any:
        """All of them, as they are now."""
        return self._all().values() if self._module_hooks else super().values()

    def _all(self) -> dict[int, Hook]:
        hooks = dict(super().items())
        for number, hook in self._module_hooks.items():
            if number < 0:
                hooks[number - _NEWER] = hook
            elif isinstance(hook, ForeignHook):
                hooks[number] = hook
            else:
                hooks[number] = ForeignHook(hook, self._module)
        return hooks


class TakesKwargs(dict[int, bool]):
    """Which hooks before a copy's forward take keyword arguments: all of the copy's.

    Args:
        of_module: Which of the module's do.
    """

    def __init__(self, of_module: Mapping[int, bool]) -> None:
        super().__init__()
        self._of_module = of_module

    def __contains__(self, number: object) -> bool:
        is_of_copy = isinstance(number, int) and number < 0
        return is_of_copy or number in self._of_module or super().__contains__(number)
