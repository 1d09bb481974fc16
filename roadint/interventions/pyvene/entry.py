"""PyveneEntry: arguments, site, call and saved values of an intervention, as pyvene needs them.

An intervention runs in pyvene's IntervenableModel and in roadint's RoadModel alike. What only
pyvene needs is here.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from roadint.architecture.devices import on_device
from roadint.architecture.layers import COMPONENTS, site_path
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.grammar.composition import ALL, Composition
from roadint.grammar.subspace import SubspaceLike
from roadint.interventions.arguments import component_name, layer_index
from roadint.interventions.base import WHOLE, SubspaceIntervention, full_precision
from roadint.interventions.pyvene.patches import (
    DistributedRepresentationIntervention,
    Sited,
    SourcelessIntervention,
    TrainableIntervention,
    pyvene,
)
from roadint.interventions.pyvene.placing import (
    check_layer,
    check_source_fits,
    layer_in_path,
    position_width,
    register_model,
    width_at,
)
from roadint.interventions.pyvene.restoring import (
    arguments_of,
    check_shape,
    check_values_fit,
    take_over,
)
from roadint.interventions.pyvene.selection import chosen_by, entries_of, parts_of

if TYPE_CHECKING:
    from typing_extensions import Self

# Fields of pyvene's RepresentationConfig that roadint's interventions do not need.
_IGNORED = frozenset(
    {
        "unit",
        "low_rank_dimension",
        "intervention_type",
        "intervention",
        "group_key",
        "intervention_link_key",
        "moe_key",
        "hidden_source_representation",
        "latent_dim",
        "use_fast",
        "keep_last_dim",
    }
)


class PyveneEntry(
    Sited, SubspaceIntervention, TrainableIntervention, DistributedRepresentationIntervention
):
    """The base class of kinds that take a source; `EditIntervention` is that of all others.

    Args:
        subspace_partition: pyvene's form of subspaces: ranges [start, end] or lists of dims, which
            are named "subspace_0", "subspace_1", ….
        embed_dim: The width of the hidden states, times `max_number_of_units`.
        max_number_of_units: How many positions pyvene edits at once.
        **arguments: Those of `SubspaceIntervention`. Further fields of pyvene's configuration are
            ignored.

    Raises:
        RoadError: for an argument that is unknown or does not fit.
    """

    def __init__(
        self,
        *,
        subspace_partition: Sequence[SubspaceLike] | None = None,
        embed_dim: int | Tensor | None = None,
        max_number_of_units: int = 1,
        **arguments: Any,
    ) -> None:
        shared = _names_of_arguments(SubspaceIntervention)
        site = {name: arguments.pop(name) for name in shared if name in arguments}
        self._check_known(arguments)
        said = site.get("subspace") is not None or site.get("subspaces") is not None
        if subspace_partition is not None:
            if said:
                raise RoadError(
                    "subspace, subspaces and subspace_partition say the same thing: "
                    "expected only one of them"
                )
            parts = enumerate(parts_of(subspace_partition))
            site["subspaces"] = {f"subspace_{number}": part for number, part in parts}
        width = None if embed_dim is None else position_width(embed_dim, max_number_of_units)
        super().__init__(**site, embed_dim=width)
        self.keep_last_dim, self.use_fast = True, arguments.get("use_fast", False)
        # pyvene's `subspaces` mean dims where there is no partition, else indices into it.
        self.counts_dims = site.get("subspaces") is None
        # Set by pyvene's `load`, which never loads the values of one with a constant source.
        self._lacks_values = bool(arguments.get("hidden_source_representation"))

    def _check_known(self, arguments: Mapping[str, Any]) -> None:
        for name, value in arguments.items():
            if name in _IGNORED or (name == "source_representation" and value is None):
                continue
            known = list(
                dict.fromkeys(
                    _names_of_arguments(type(self))
                    + _names_of_arguments(PyveneEntry)
                    + _names_of_arguments(SubspaceIntervention)
                )
            )
            raise RoadError(
                f"{type(self).__name__} has no argument {quoted(name)}: "
                f"expected one of {listing(known)}{did_you_mean(name, known)}"
            )

    def bind(self, width: int) -> "Self":
        """As in `SubspaceIntervention`; pyvene learns the width too."""
        super().bind(width)
        with torch.inference_mode(False):
            self.embed_dim = self.interchange_dim = torch.tensor(width)
        return self

    # Where it acts.

    def representation(self, configured: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of pyvene's RepresentationConfig.

        Where both the intervention and the configuration set layer or component, they must agree.
        What only the configuration sets, the intervention takes over.

        Args:
            configured: The fields that the user's configuration sets.

        Raises:
            RoadError: where they disagree, and for a field that would not act.
        """
        fields = pyvene.RepresentationConfig._fields
        for name in configured:
            if name not in fields:
                raise RoadError(
                    f"pyvene's representations have no field {quoted(name)}: "
                    f"expected one of {listing(fields)}"
                )
        if configured.get("subspace_partition") is not None:
            raise RoadError(
                "subspace_partition is the intervention's own: "
                f"expected {type(self).__name__}(subspace_partition=…)"
            )
        self._take_site(configured.get("layer"), configured.get("component"))
        self._take_source(configured.get("source_representation"))
        return {**configured, "layer": self.layer, "component": self.component}

    def _take_site(self, layer: Any, component: Any) -> None:
        layer = None if layer is None else layer_index(layer)
        component = None if component is None else component_name(component)
        for name, wanted in (("layer", layer), ("component", component)):
            said = getattr(self, name)
            if name in self._said and wanted is not None and wanted != said:
                raise RoadError(
                    f"the configuration says {name} {quoted(wanted)}, "
                    f"its {type(self).__name__} {quoted(said)}: "
                    f"expected the {name} said once, or twice the same"
                )
        layer = self.layer if "layer" in self._said else layer
        if component is not None and "." in component:
            layer = layer_in_path(component, layer)
        self.layer = self.layer if layer is None else layer
        self.component = component or self.component

    def _take_source(self, source: Any) -> None:
        """Take the constant source of a configuration; kinds without sources refuse it."""
        if source is not None:
            raise RoadError(
                f"{type(self).__name__} takes no source: expected no source_representation"
            )

    @classmethod
    def prepare(cls, model: nn.Module, component: str) -> None:
        """Register this type of model with pyvene, where pyvene does not know it.

        Raises:
            RoadError: for a model without decoder layers, or without the component.
        """
        if "." in str(component):
            return
        register_model(model)
        if component in COMPONENTS and component not in pyvene.type_to_module_mapping[type(model)]:
            site_path(model, 0, component)  # says why no layer has it

    def settle(self, model: nn.Module, representation: Any, module: nn.Module) -> None:
        """Set the width, where the model tells it, and move to the device of the module.

        Args:
            model: The model.
            representation: pyvene's RepresentationConfig of this intervention.
            module: The module whose hidden states are edited.
        """
        if representation.component == "block_output":
            check_layer(model, representation.layer, module)
        width = None if self.bound else width_at(model, representation.component, module)
        if width is not None:
            self.bind(width)
        parameter = next(module.parameters(), None)
        if parameter is not None and parameter.device.type != "meta":
            self.to(parameter.device)

    # The call.

    def forward(
        self,
        base: Float[Tensor, "rows *positions width"],
        source: Tensor | None = None,
        subspaces: Any = None,
        **kwargs: Any,
    ) -> Float[Tensor, "rows *positions width"]:
        """Edit hidden states; pyvene calls it.

        Where the width was not known, it is that of `base` from now on.

        Args:
            base: The hidden states, with any number of heads and positions, of any dtype.
            source: The hidden states of another input, for kinds that take a source.
            subspaces: None for all subspaces; a composition for all rows ("german", "a + 0.5*b");
                or a list with an entry for every row. An entry is a composition, or a list of
                names, of indices into the partition or, where the intervention names no subspaces,
                of dims (whole blocks). None or an empty list leaves the row as it is.
            **kwargs: Ignored.

        Returns:
            The edited hidden states, in the dtype of `base`.

        Raises:
            RoadError: for anything else.
        """
        del kwargs
        self._check_states(base, source)
        if not base.numel():
            return base
        index = torch.arange(len(base), device=base.device)
        rows = self.rows(self._strengths_of(subspaces, len(base)))
        rows = rows.row(index.reshape(-1, *(1,) * (base.ndim - 2)))
        with full_precision(base):
            return self.edit(base, rows, source if self.takes_source else None)

    def _check_states(self, base: Tensor, source: Tensor | None) -> None:
        if not torch.is_tensor(base) or base.ndim < 2 or not base.is_floating_point():
            got = f"{base.dtype} {tuple(base.shape)}" if torch.is_tensor(base) else quoted(base)
            raise RoadError(f"hidden states are {got}: expected floating-point [rows, …, width]")
        if not self.bound:
            self.bind(base.shape[-1])
            if base.device.type != "meta":
                self.to(base.device)
        if base.shape[-1] != self.width:
            raise RoadError(
                f"hidden states of width {base.shape[-1]} for an intervention of width {self.width}"
            )
        if self._lacks_values:
            raise RoadError(
                "pyvene's load brings no values of one with a constant source: "
                "expected roadint.interop.pyvene.load"
            )
        device = next(self.parameters()).device
        if device != base.device:
            raise RoadError(
                f"hidden states on {base.device} for an intervention on {device}: "
                f"expected .to({str(base.device)!r}) first"
            )
        if source is not None and self.takes_source:
            check_source_fits(source, base)

    def _strengths_of(self, subspaces: Any, rows: int) -> Float[Tensor, "rows units"]:
        if subspaces is None or isinstance(subspaces, (str, Mapping, Composition)):
            composition = ALL if subspaces is None else subspaces
            return self.strengths([Composition.parse(composition, list(self.partition))] * rows)
        dims_of = WHOLE if self.counts_dims else None
        entries = entries_of(subspaces, rows)
        chosen = [chosen_by(entry, self.partition, dims_of) for entry in entries]
        compositions = [choice for choice in chosen if isinstance(choice, Composition)]
        if len(compositions) == rows:
            return self.strengths(compositions)
        strengths = torch.stack([self._unit_strengths(choice) for choice in chosen])
        self._check_strengths(strengths)
        return on_device(strengths, next(self.parameters()).device)

    def _unit_strengths(self, choice: Composition | Tensor) -> Float[Tensor, " units"]:
        if isinstance(choice, Composition):
            return self.partition.strengths(dict(choice.terms))
        return choice

    # The values, which pyvene saves without the arguments that they belong to.

    def _state_arguments(self) -> dict[str, Any]:
        """The arguments that make the intervention again, as JSON; `counts_dims` included."""
        arguments = self.spec()
        if self.counts_dims:
            arguments["subspace"] = arguments.pop("subspaces")[WHOLE]
        return arguments

    def get_extra_state(self) -> Tensor:
        """The arguments as JSON bytes, for the state_dict."""
        text = json.dumps(self._state_arguments())
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing: `_load_from_state_dict` has read the arguments already."""

    def _measured(self) -> dict[str, Tensor]:
        """The tensors of `values` that are no parameters."""
        parameters = dict(self.named_parameters())
        return {name: value for name, value in self.values().items() if name not in parameters}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._check_bound()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}{name}": value for name, value in self._measured().items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            self._take_arguments(arguments_of(state), state_dict, prefix)
        self._check_bound()
        for name, value in self._measured().items():
            saved = state_dict.pop(f"{prefix}{name}", None)
            if saved is not None:
                check_shape(name, saved, value)
                value.copy_(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._lacks_values = False

    def _take_arguments(
        self, arguments: dict[str, Any], state_dict: Mapping[str, Any], prefix: str
    ) -> None:
        """Take over saved arguments, but for layer and component where they are set here.

        pyvene's `load` knows only its own fields, so the intervention that it makes may have other
        arguments than the saved one. Parameter objects, hooks and the mode stay the same.
        """
        arguments |= {name: getattr(self, name) for name in self._said}
        if self.bound and arguments == self._state_arguments():
            return
        width = arguments.get("embed_dim")
        if self.bound and width != self.width:
            raise RoadError(
                f"values for width {quoted(width)} in an intervention of width {self.width}"
            )
        values = {
            name.removeprefix(prefix): value
            for name, value in state_dict.items()
            if name.startswith(prefix)
        }
        check_values_fit(type(self), arguments, values)
        take_over(self, type(self)(**{**arguments, "embed_dim": None}))
        self._make(arguments["embed_dim"])
        self.bind(arguments["embed_dim"]).train(self.training)


class EditIntervention(SourcelessIntervention, PyveneEntry):
    """The base class of kinds that edit a hidden state without a source."""


def _names_of_arguments(kind: type) -> list[str]:
    """The names of the arguments of a class, without **kwargs."""
    parameters = inspect.signature(kind).parameters.values()
    return [
        parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD
    ]
