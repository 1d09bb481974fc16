"""pyvene, imported without its printing, and patched to ask interventions where they act.

pyvene's configuration reads the layer from a dict (0 where it has none), and its model never tells
an intervention the width. Patched, IntervenableConfig and the model ask interventions that are
`Sited` first; configurations without such interventions reach pyvene's code unchanged.
"""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from roadint.errors import RoadError, first_line, quoted
from roadint.grammar.composition import Composition

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyvene
    from pyvene import (
        DistributedRepresentationIntervention,
        IntervenableConfig,
        RepresentationConfig,
        SourcelessIntervention,
        TrainableIntervention,
    )
    from pyvene.models.intervenable_base import BaseModel
    from pyvene.models.modeling_utils import get_dimension_by_component, get_module_hook

__all__ = [
    "DistributedRepresentationIntervention",
    "Sited",
    "SourcelessIntervention",
    "TrainableIntervention",
    "get_dimension_by_component",
    "pyvene",
]

# What pyvene raises for a component or a layer that the model does not have.
_NOT_THERE = (AttributeError, IndexError, KeyError, NameError, TypeError, ValueError)


_COMPOSITIONS = (str, Mapping, Composition)


class Sited:
    """What the patched pyvene asks an intervention of roadint."""

    def representation(self, configured: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of pyvene's RepresentationConfig.

        Args:
            configured: The fields that the user's configuration sets.

        Raises:
            RoadError: where they disagree with the intervention.
        """
        raise NotImplementedError

    @classmethod
    def prepare(cls, model: nn.Module, component: str) -> None:
        """Register this type of model with pyvene, where pyvene does not know it."""
        raise NotImplementedError

    def settle(self, model: nn.Module, representation: Any, module: nn.Module) -> None:
        """Take width and device from the model and from the module whose output is edited."""
        raise NotImplementedError


def representations_of(listed: Any) -> list[Any]:
    """pyvene's list of representations, with the fields that Sited interventions return.

    Args:
        listed: Interventions, or what pyvene takes as representations.

    Raises:
        RoadError: where a configuration and its intervention disagree.
    """
    # A RepresentationConfig is a tuple too.
    single = isinstance(listed, RepresentationConfig)
    if single or not isinstance(listed, (list, tuple, nn.ModuleList)):
        listed = [listed]
    return [_representation(item) for item in listed]


def _representation(item: Any) -> Any:
    if isinstance(item, Sited):
        return RepresentationConfig(**item.representation({"intervention": item}))
    fields = _fields(item)
    intervention, kind = fields.get("intervention"), fields.get("intervention_type")
    if isinstance(intervention, type) and issubclass(intervention, Sited):
        raise RoadError(
            f"'intervention' is the class {intervention.__name__}: "
            "expected an object of it, or the class as 'intervention_type'"
        )
    if isinstance(kind, Sited):
        raise RoadError(
            f"'intervention_type' is a {type(kind).__name__}: "
            "expected its class, or the object as 'intervention'"
        )
    if isinstance(intervention, Sited):
        return RepresentationConfig(**intervention.representation(fields))
    return item


def _fields(item: Any) -> dict[str, Any]:
    """The fields of a representation: a dict, a RepresentationConfig, or its values in order."""
    if isinstance(item, dict):
        return item
    if isinstance(item, RepresentationConfig):
        fields: dict[str, Any] = item._asdict()
        if "." in str(item.component) and item.layer == 0:
            del fields["layer"]  # the default: a path names its layer
        return fields
    if isinstance(item, list):
        return dict(zip(RepresentationConfig._fields, item, strict=False))
    return {}


def _asking(original: Callable[..., None]) -> Callable[..., None]:
    """IntervenableConfig.__init__ or add_intervention, which ask Sited interventions first."""

    @functools.wraps(original)
    def take(self: Any, *args: Any, **kwargs: Any) -> None:
        if args:
            args = (representations_of(args[0]), *args[1:])
        elif "representations" in kwargs:
            kwargs["representations"] = representations_of(kwargs["representations"])
        original(self, *args, **kwargs)

    return take


def _adding(original: Callable[..., None]) -> Callable[..., None]:
    """IntervenableConfig.add_intervention, which knows no intervention objects."""

    @functools.wraps(original)
    def add(self: Any, representations: Any) -> None:
        for item in representations_of(representations):
            if not isinstance(getattr(item, "intervention", None), Sited):
                original(self, item)
                continue
            if not isinstance(self.intervention_types, list):
                self.intervention_types = [self.intervention_types] * len(self.representations)
            self.representations.append(item)
            self.intervention_types.append(type(item.intervention))

    return add


def _settling(original: Callable[..., None]) -> Callable[..., None]:
    """BaseModel.__init__, which also gives Sited interventions the model."""

    @functools.wraps(original)
    def build(self: Any, config: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if isinstance(config, (Sited, dict, list, tuple, nn.ModuleList)):
            config = IntervenableConfig(config)
        if isinstance(config, IntervenableConfig):
            # Once more: the list may have been changed.
            config.representations = representations_of(config.representations)
            _prepare(config, model)
        original(self, config, model, *args, **kwargs)
        for key, intervention in self.interventions.items():
            hook = self.intervention_hooks[key]
            if isinstance(intervention, Sited) and hasattr(hook, "__self__"):
                intervention.settle(model, self.representations[key], hook.__self__)

    return build


def _broadcasting(original: Callable[..., Any]) -> Callable[..., Any]:
    """BaseModel._broadcast_subspaces, which also takes compositions.

    pyvene would take a text letter by letter, and drop entries that are too many.
    """

    @functools.wraps(original)
    def broadcast(self: Any, batch_size: int, subspaces: Any) -> Any:
        sited = any(isinstance(edit, Sited) for edit in self.interventions.values())
        if sited and isinstance(subspaces, _COMPOSITIONS):
            return [subspaces] * len(self.interventions)
        if sited and subspaces is not None and not isinstance(subspaces, int):
            _check_lists(subspaces, len(self.interventions))
        return original(self, batch_size, subspaces)

    return broadcast


def _locating(original: Callable[..., Any]) -> Callable[..., Any]:
    """BaseModel._broadcast_unit_locations, for each call as if it were the first.

    pyvene goes over to `use_fast`, one location for all rows, at the first call whose rows share
    theirs, and stays with it: rows of later calls would all be edited where the first one is.
    """

    @functools.wraps(original)
    def broadcast(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(edit, Sited) for edit in self.interventions.values()):
            self.use_fast = vars(self).setdefault("_built_fast", self.use_fast)
        return original(self, *args, **kwargs)

    return broadcast


def _check_lists(subspaces: Any, count: int) -> None:
    """Refuse subspaces that are neither `count` lists nor indices for all rows."""
    if isinstance(subspaces, (list, tuple)) and any(
        isinstance(entry, _COMPOSITIONS) for entry in subspaces
    ):
        raise RoadError(
            f"subspaces {quoted(subspaces)}: "
            "expected for each intervention a list of one entry a row, [['a', 'b']]"
        )
    if isinstance(subspaces, list) and subspaces and isinstance(subspaces[0], int):
        return
    if not hasattr(subspaces, "__len__") or len(subspaces) != count:
        raise RoadError(
            f"subspaces {quoted(subspaces)} for {count} interventions: "
            "expected one list each, of one entry a row"
        )


def _prepare(config: Any, model: nn.Module) -> None:
    kinds = config.intervention_types
    kinds = kinds if isinstance(kinds, list) else [kinds] * len(config.representations)
    for representation, kind in zip(config.representations, kinds, strict=False):
        if representation.intervention is not None:
            kind = type(representation.intervention)
        if isinstance(kind, Sited):
            raise RoadError(
                f"intervention_types has a {type(kind).__name__}: "
                "expected its class, or the object as 'intervention'"
            )
        if isinstance(kind, type) and issubclass(kind, Sited):
            kind.prepare(model, representation.component)
            _check_there(model, representation)


def _check_there(model: nn.Module, representation: Any) -> None:
    try:
        get_module_hook(model, representation)
    except _NOT_THERE as error:
        raise RoadError(
            f"{type(model).__name__} has no {quoted(representation.component)} "
            f"at layer {quoted(representation.layer)}: "
            "expected one of pyvene's components and a layer of the model "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None


def _patch(
    owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


_patch(IntervenableConfig, "__init__", _asking)
_patch(IntervenableConfig, "add_intervention", _adding)
_patch(BaseModel, "__init__", _settling)
_patch(BaseModel, "_broadcast_subspaces", _broadcasting)
_patch(BaseModel, "_broadcast_unit_locations", _locating)
