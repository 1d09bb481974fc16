"""pyvene, imported without its printing, and taught to take interventions that say themselves where they act.

pyvene's configuration reads the layer from a dict (0 where it has none) and its model never tells an instance the width. Here
`IntervenableConfig` and the model that it configures first ask the interventions that are `Sited`; whatever holds none of them
goes to pyvene's own code as it is.
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


class Sited:
    """What pyvene's configuration and model ask an intervention of roadint."""

    def representation(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of pyvene's RepresentationConfig. given: those that the user gave. Raises RoadError where they disagree."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, model: nn.Module, component: str) -> None:
        """Tell pyvene about this type of model, where it does not know it."""
        raise NotImplementedError

    def settle(self, model: nn.Module, representation: Any, module: nn.Module) -> None:
        """Learn from the model, and the module inside it whose states are edited, what is not known yet: width and device."""
        raise NotImplementedError


def representations_of(given: Any) -> Any:
    """pyvene's list of representations, of which the Sited ones have been asked; given: what pyvene takes, or interventions."""
    if isinstance(given, RepresentationConfig) or not isinstance(
        given, (list, tuple, nn.ModuleList)
    ):
        given = [given]
    return [_representation(each) for each in given]


def _representation(each: Any) -> Any:
    if isinstance(each, Sited):
        return RepresentationConfig(**each.representation({"intervention": each}))
    fields = _fields(each)
    own, own_type = fields.get("intervention"), fields.get("intervention_type")
    if isinstance(own, type) and issubclass(own, Sited):
        raise RoadError(
            f"'intervention' is the class {own.__name__}: expected an object of it, or the class as 'intervention_type'"
        )
    if isinstance(own_type, Sited):
        raise RoadError(
            f"'intervention_type' is a {type(own_type).__name__}: expected its class, or the object as 'intervention'"
        )
    return RepresentationConfig(**own.representation(fields)) if isinstance(own, Sited) else each


def _fields(each: Any) -> dict[str, Any]:
    """What one of pyvene's forms says: a dict, a RepresentationConfig, or its values in order."""
    if isinstance(each, dict):
        return each
    if isinstance(each, RepresentationConfig):
        fields: dict[str, Any] = each._asdict()
        if "." in str(each.component) and each.layer == 0:
            del fields["layer"]  # the default: a path has its layer inside
        return fields
    return (
        dict(zip(RepresentationConfig._fields, each, strict=False))
        if isinstance(each, list)
        else {}
    )


def _asking(original: Callable[..., None]) -> Callable[..., None]:
    """IntervenableConfig.__init__ or add_intervention, for representations that may be, or hold, Sited interventions."""

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
        for each in representations_of(representations):
            if not isinstance(getattr(each, "intervention", None), Sited):
                original(self, each)
                continue
            if not isinstance(self.intervention_types, list):
                self.intervention_types = [self.intervention_types] * len(self.representations)
            self.representations.append(each)
            self.intervention_types.append(type(each.intervention))

    return add


def _settling(original: Callable[..., None]) -> Callable[..., None]:
    """BaseModel.__init__, which tells Sited interventions the model."""

    @functools.wraps(original)
    def build(self: Any, config: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if isinstance(config, (Sited, dict, list, tuple, nn.ModuleList)):
            config = IntervenableConfig(config)
        if isinstance(config, IntervenableConfig):
            # Once more: the list is open to changes.
            config.representations = representations_of(config.representations)
            _prepare(config, model)
        original(self, config, model, *args, **kwargs)
        for key, intervention in self.interventions.items():
            hook = self.intervention_hooks[key]
            if isinstance(intervention, Sited) and hasattr(hook, "__self__"):
                intervention.settle(model, self.representations[key], hook.__self__)

    return build


def _broadcasting(original: Callable[..., Any]) -> Callable[..., Any]:
    """BaseModel._broadcast_subspaces, which would take the letters of a text, and the first of too many entries."""

    @functools.wraps(original)
    def broadcast(self: Any, batch_size: int, subspaces: Any) -> Any:
        count = len(self.interventions)
        if (
            subspaces is None
            or isinstance(subspaces, int)
            or not any(isinstance(each, Sited) for each in self.interventions.values())
        ):
            return original(self, batch_size, subspaces)
        if isinstance(subspaces, (str, Mapping, Composition)):
            return [subspaces] * count
        if isinstance(subspaces, (list, tuple)) and any(
            isinstance(each, (str, Mapping, Composition)) for each in subspaces
        ):
            raise RoadError(
                f"subspaces {quoted(subspaces)}: expected for each intervention a list of one entry a row, [['a', 'b']]"
            )
        if isinstance(subspaces, list) and subspaces and isinstance(subspaces[0], int):
            return original(self, batch_size, subspaces)
        if not hasattr(subspaces, "__len__") or len(subspaces) != count:
            raise RoadError(
                f"subspaces {quoted(subspaces)} for {count} interventions: expected one list each, of one entry a row"
            )
        return original(self, batch_size, subspaces)

    return broadcast


def _prepare(config: Any, model: nn.Module) -> None:
    kinds = config.intervention_types
    kinds = kinds if isinstance(kinds, list) else [kinds] * len(config.representations)
    for representation, kind in zip(config.representations, kinds, strict=False):
        own = kind if representation.intervention is None else type(representation.intervention)
        if isinstance(own, Sited):
            raise RoadError(
                f"intervention_types has a {type(own).__name__}: expected its class, or the object as 'intervention'"
            )
        if not (isinstance(own, type) and issubclass(own, Sited)):
            continue
        own.prepare(model, representation.component)
        try:
            get_module_hook(model, representation)
        except _NOT_THERE as error:
            raise RoadError(
                f"{type(model).__name__} has no {quoted(representation.component)} at layer {quoted(representation.layer)}: "
                f"expected one of pyvene's components and a layer of the model ({type(error).__name__}: {first_line(error)})"
            ) from None


def _teach(
    owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


_teach(IntervenableConfig, "__init__", _asking)
_teach(IntervenableConfig, "add_intervention", _adding)
_teach(BaseModel, "__init__", _settling)
_teach(BaseModel, "_broadcast_subspaces", _broadcasting)
