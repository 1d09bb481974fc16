"""The edit section of a recipe: a kind of intervention, or adapters, with arguments and layers.

The arguments come from the kind itself, so a new kind needs no change here.
"""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, create_model
from typing_extensions import Self

from roadint.adapters.targets import ALL_LINEAR
from roadint.errors import RoadError, check_known, listing, quoted
from roadint.grammar.position import Phase
from roadint.grammar.ranges import write_slice
from roadint.grammar.subspace import Subspace
from roadint.interventions.registry import kind_of, kinds
from roadint.recipes.section import Finite, Index, Indices, NameList, Section
from roadint.rotation.rotation import Pairing, Variant

LINEAR = "linear"


def plain_subspace(subspace: Any) -> Any:
    """A subspace as text or lists, for YAML and JSON.

    Args:
        subspace: A subspace in any form; slices, ranges and pairs become text.

    Examples:
        >>> [plain_subspace(form) for form in (slice(0, 16), (16, "d/2"), [3, 4])]
        ['[0, 16)', '[16, d/2)', [3, 4]]
    """
    if isinstance(subspace, range) and subspace.step == 1:
        subspace = slice(subspace.start, subspace.stop)
    if isinstance(subspace, slice):
        return write_slice(subspace) if subspace.step in (None, 1) else subspace
    if isinstance(subspace, Subspace):
        return str(subspace)
    if not isinstance(subspace, (tuple, list)):
        return subspace
    if isinstance(subspace, tuple) and _is_range(subspace):
        start, end = subspace
        return f"[{start}, {end})"
    return [plain_subspace(part) for part in subspace]


def _is_range(pair: tuple[Any, ...]) -> bool:
    """Whether a pair is a range; the grammar decides about neighbours, which may be two dims."""
    if len(pair) != 2 or any(isinstance(end, (tuple, list)) for end in pair):
        return False
    return not (isinstance(pair[0], int) and pair[1] == pair[0] + 1)


def plain_subspaces(subspaces: Any) -> Any:
    """Subspaces by name, by `plain_subspace`; anything but a mapping is returned as it is.

    Args:
        subspaces: Name → subspace.
    """
    if not isinstance(subspaces, Mapping):
        return subspaces
    return {name: plain_subspace(subspace) for name, subspace in subspaces.items()}


class Place(Section):
    """Where a subspace acts; what is None is as the recipe says for all.

    Attributes:
        layers: The layers, from 0.
        position: The tokens that are edited.
        phase: "prompt", "generated" or "both".
    """

    layers: Indices | None = None
    position: str | None = None
    phase: Phase | None = None

    def model_post_init(self, context: Any) -> None:
        """Check that there is a layer."""
        del context
        _check_layers(self.layers)


def _as_place(value: Any) -> Any:
    if not isinstance(value, (Mapping, Place)):
        raise ValueError(": expected a mapping such as {layers: 15, position: last}")
    return value


def _check_layers(layers: list[int] | None) -> None:
    if layers == []:
        raise RoadError("recipe setting layers=[] selects no layer: expected some, such as [9]")


class InterventionSettings(Section):
    """The settings of all kinds of interventions, the same at all layers of the recipe.

    Attributes:
        component: The part of a layer whose output is edited.
        position: The tokens that are edited.
        phase: "prompt", "generated" or "both".
        subspaces: Name → subspace.
        places: Subspace → where it acts, if elsewhere than the others.
    """

    component: str = "block_output"
    position: str = "last"
    phase: Phase = "prompt"
    subspaces: Annotated[dict[str, Any], BeforeValidator(plain_subspaces)] = Field(
        default_factory=lambda: {"german": "[0, d/2)", "english": "[d/2, d)"}
    )
    places: dict[str, Annotated[Place, BeforeValidator(_as_place)]] = Field(default_factory=dict)


class AdapterSettings(Section):
    """The settings of adapters, as in `RoadModel.add_adapter`."""

    variant: Variant = "road_1"
    pairing: Pairing = "adjacent"
    targets: str | list[str] = ALL_LINEAR
    exclude: NameList = Field(default_factory=list)
    lora_rank: Index = 0
    lora_alpha: Finite | None = None
    heads: NameList = Field(default_factory=list)


def settings_of(kind: str) -> type[Section]:
    """The section with the settings of a kind.

    Args:
        kind: A registered kind of intervention, or "linear" for adapters.

    Raises:
        RoadError: where there is no such kind.
    """
    check_known("kind of intervention", kind, all_kinds())
    if kind == LINEAR:
        return AdapterSettings
    intervention: Any = kind_of(kind)  # mypy takes a class for unhashable where its objects are
    return _settings_of(intervention)


def all_kinds() -> list[str]:
    """The kinds that a recipe may name."""
    return [*kinds(), LINEAR]


@cache
def _settings_of(kind: type[Any]) -> type[Section]:
    shared = InterventionSettings.model_fields
    more: dict[str, Any] = {
        name: _constructor_argument(kind, name)
        for name in kind.recipe_fields()
        if name not in shared
    }
    return create_model(f"{kind.__name__}Settings", __base__=InterventionSettings, **more)


def _constructor_argument(kind: type, name: str) -> tuple[Any, Any]:
    """Type and default of an argument, from the class that defines it."""
    for base in kind.__mro__:
        constructor = vars(base).get("__init__")
        argument = inspect.signature(constructor).parameters.get(name) if constructor else None
        if argument is not None:
            hint = get_type_hints(constructor, include_extras=True).get(name, Any)
            return hint, ... if argument.default is argument.empty else argument.default
    raise RoadError(f"{kind.__name__} has no argument {name!r} that a recipe could say")


class EditSection(Section):
    """The kind of edit, its layers and its arguments.

    Attributes:
        kind: "road", a baseline ("loreft", "direft", "steering") or any other registered kind of
            intervention; "linear" for adapters on linear layers.
        layers: The layers, from 0; layer 9 by default, or all layers for adapters.

    The kind's own arguments are attributes too, as in YAML: `edit.subspaces`, `edit.variant`.
    """

    model_config = ConfigDict(extra="allow")

    kind: str = "road"
    layers: Indices | None = None

    def __init__(self, kind: Any = "road", layers: Any = None, **arguments: Any) -> None:
        takes = settings_of(kind)
        for name, value in arguments.items():
            if name not in takes.model_fields:
                others = [other for other in all_kinds() if name in settings_of(other).model_fields]
                raise RoadError(
                    f"recipe setting {name}={quoted(value)} is not of kind {quoted(kind)}, which "
                    f"takes {listing(takes.model_fields)}, but of {listing(others)}"
                )
        super().__init__(kind=kind, layers=layers, **dict(takes(**arguments)))
        _check_layers(self.layers)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A kind's argument."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The kind's own arguments, by name."""
        return dict(self.model_extra or {})

    def interventions(self) -> list[dict[str, Any]]:
        """The arguments of every intervention, not of kind "linear".

        Subspaces whose layers, position and phase are the same are in one.

        Raises:
            RoadError: where `places` names no subspace.
        """
        arguments = self.arguments
        places, subspaces = arguments.pop("places"), arguments["subspaces"]
        for name in places:
            if name not in subspaces:
                raise RoadError(
                    f"recipe setting places names {quoted(name)}: expected one of "
                    f"{listing(subspaces)}, or places={{}}"
                )
        placed: dict[tuple[tuple[int, ...], str, Phase], dict[str, Any]] = {}
        for name, subspace in subspaces.items():
            own = places.get(name, Place())
            layers = tuple(own.layers or self.layers or [9])
            place = layers, own.position or arguments["position"], own.phase or arguments["phase"]
            placed.setdefault(place, {})[name] = subspace
        return [
            {**arguments, "layer": layer, "position": position, "phase": phase, "subspaces": those}
            for (layers, position, phase), those in placed.items()
            for layer in layers
        ]

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """Change some settings; a new kind keeps the arguments that it has too."""
        takes = settings_of(settings.get("kind", self.kind)).model_fields
        kept = {name: value for name, value in self.arguments.items() if name in takes}
        return type(self)(**{"kind": self.kind, "layers": self.layers, **kept, **settings})


def edit_names() -> list[str]:
    """Every setting that an edit may have, of whatever kind."""
    names = dict.fromkeys(EditSection.model_fields)
    for kind in all_kinds():
        names |= dict.fromkeys(settings_of(kind).model_fields)
    return list(names)
