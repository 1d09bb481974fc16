"""All kinds of interventions, by the names that recipes and checkpoints give them.

A kind is one file: a class with `@register("name")`. The modules of this package are imported when
a kind is looked up.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from roadint.errors import RoadError, check_known

if TYPE_CHECKING:
    from roadint.interventions.base import SubspaceIntervention

_Kind = TypeVar("_Kind", bound="type[SubspaceIntervention]")
_KINDS: dict[str, "type[SubspaceIntervention]"] = {}


def register(name: str) -> Callable[[_Kind], _Kind]:
    """Decorate a kind of intervention: recipes and checkpoints call it `name`.

    Raises:
        RoadError: where another kind has the name.
    """

    def named(kind: _Kind) -> _Kind:
        if _place_of(_KINDS.get(name, kind)) != _place_of(kind):
            raise RoadError(f"two kinds of intervention are called {name!r}: expected another name")
        kind.kind = name
        _KINDS[name] = kind
        return kind

    return named


def _place_of(kind: type) -> tuple[str, str]:
    """What stays the same where a module or a notebook's cell runs once more."""
    return kind.__module__, kind.__qualname__


@cache
def _find() -> None:
    import roadint.interventions as package

    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")


def kinds() -> dict[str, "type[SubspaceIntervention]"]:
    """All kinds, by name, in the order of their names, whichever was imported first."""
    _find()
    return dict(sorted(_KINDS.items()))


def kind_of(name: str) -> "type[SubspaceIntervention]":
    """The class of a kind.

    Raises:
        RoadError: for an unknown name.
    """
    check_known("kind of intervention", name, kinds())
    return _KINDS[name]
