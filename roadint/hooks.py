"""Hooks of one call: added for it and removed after it, also after an exception, and active in its own context alone.

A hook acts only in the context (thread or task) that attached it, so calls that overlap on one model do not see each other.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

_active: ContextVar[tuple[object, ...]] = ContextVar("roadint_active_edits", default=())
_registering = threading.Lock()  # torch numbers its hooks without one

Forward = Callable[[nn.Module, Any, Any], Any]


def acts(owner: object) -> bool:
    """Whether `owner` has attached its hooks in this context."""
    return owner in _active.get()


@contextmanager
def attached(
    owner: object, hooks: Iterable[tuple[nn.Module, Forward]], before: tuple[nn.Module, Callable[..., None]] | None = None
) -> Iterator[None]:
    """Forward hooks inside, for this context; before: a module and what is called with its arguments, (module, args, kwargs)."""
    handles = []
    token = _active.set((*_active.get(), owner))
    try:
        with _registering:
            if before is not None:
                handles.append(before[0].register_forward_pre_hook(before[1], with_kwargs=True))
            for module, hook in hooks:
                handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _active.reset(token)
