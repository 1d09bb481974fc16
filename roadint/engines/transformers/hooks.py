"""The hooks of a module's copy: those of the view, and those that the module itself has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

Hook = Callable[..., Any]

_NOTHING = object()
_NEWER = 1000  # more hooks than a view has at a module


class ForeignHook:
    """Another library's hook on a module, which is called with the module instead of its copy.

    Args:
        hook: The hook.
        module: The module that has the hook.
    """

    def __init__(self, hook: Hook, module: nn.Module) -> None:
        self._hook, self._module = hook, module

    def __call__(self, copy: nn.Module, *rest: Any) -> Any:
        """Run the hook, and give the copy the attributes that it sets on the module.

        Weight norms and prunings set a weight in this way before every forward.
        """
        before = dict(vars(self._module))
        result = self._hook(self._module, *rest)
        for name, value in dict(vars(self._module)).items():
            if value is not before.get(name, _NOTHING):
                vars(copy)[name] = value
        return result


class CopyHooks(dict[int, Hook]):
    """A copy's hooks, followed by those that its module has at the moment.

    The module's may come and go during a call. A view of a view has the hooks of both, the new ones
    first.

    Args:
        hooks: The copy's.
        module_hooks: The module's.
        module: The module that was copied.
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
    """Which hooks before a copy's forward take keyword arguments: all of the copy's own do.

    Args:
        of_module: The numbers of the module's hooks that do.
    """

    def __init__(self, of_module: Mapping[int, bool]) -> None:
        super().__init__()
        self._of_module = of_module

    def __contains__(self, number: object) -> bool:
        is_of_copy = isinstance(number, int) and number < 0
        return is_of_copy or number in self._of_module or super().__contains__(number)
