"""What every intervention of roadint shares: where it acts, its named subspaces, and the strengths of each row's composition.

An intervention runs in pyvene's IntervenableModel and in roadint's RoadModel alike; both turn a row's composition into strengths,
one a unit (a block of RoAd, a row of LoReFT), and those into what the row's hidden states are edited with.
"""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.grammar.composition import ALL, Composition
from roadint.grammar.position import Phase, Position
from roadint.grammar.subspace import Partition, SubspaceLike
from roadint.interventions.pyvene.patches import (
    DistributedRepresentationIntervention,
    Sited,
    SourcelessIntervention,
    TrainableIntervention,
    pyvene,
)
from roadint.interventions.pyvene.placing import (
    check_layer,
    check_source,
    component_name,
    layer_in_path,
    layer_index,
    register,
    told_width,
    width_at,
)
from roadint.interventions.pyvene.restoring import arguments_of, become, check_fits, check_shape
from roadint.interventions.pyvene.selection import chosen_by, entries_of, parts_of
from roadint.rotation.parameters import KeepsPrecision, keep_objects, wait_for

# The other fields of pyvene's RepresentationConfig; they say nothing that an intervention of ours needs.
_PYVENE_FIELDS = {
    "unit",
    "low_rank_dimension",
    "intervention_type",
    "intervention",
    "group_key",
    "intervention_link_key",
}
_PYVENE_FIELDS |= {
    "moe_key",
    "hidden_source_representation",
    "latent_dim",
    "use_fast",
    "keep_last_dim",
}
WHOLE = "road"  # the name of the one subspace of an intervention that names none


class Rows(Protocol):
    """What the rows of a batch are edited with; a Rotation, for RoAd."""

    def row(self, index: Tensor) -> "Rows":
        """Those of the rows `index`, int of any shape: the leading shape of the hidden states that they edit."""


class SubspaceIntervention(
    Sited, KeepsPrecision, TrainableIntervention, DistributedRepresentationIntervention
):
    """The base class: a site, a partition of the intervention's units into named subspaces, and an edit at given strengths.

    A kind of intervention says what its units are (`_build`), which parameters it will have (`_parameter_names`), what a row is
    edited with (`rows`) and how (`edit`), which arguments make it again (`spec`), and what its values at another strength are
    (`rescale`). Until the width is known its parameters are UninitializedParameters, which become what they are without being
    replaced.
    """

    takes_source = False  # whether an edit needs the hidden states of another input

    kind: str  # the name of this kind in recipes and checkpoints
    partition: Partition

    def __init__(
        self,
        *,
        layer: int | None = None,
        component: str | None = None,
        position: str | Position = "last",
        phase: Phase = "prompt",
        subspace: SubspaceLike = None,
        subspaces: Mapping[str, SubspaceLike] | None = None,
        embed_dim: int | Tensor | None = None,
        subspace_partition: Sequence[SubspaceLike] | None = None,
        max_number_of_units: int = 1,
        **kwargs: Any,  # what pyvene gives an intervention_type besides; see _PYVENE_FIELDS
    ) -> None:
        super().__init__(keep_last_dim=True, use_fast=kwargs.get("use_fast", False))
        if kwargs.get("source_representation") is None:
            kwargs.pop("source_representation", None)  # pyvene gives all of its fields
        for name in kwargs:
            if name not in _PYVENE_FIELDS:
                own = list(
                    dict.fromkeys([*_arguments(type(self)), *_arguments(SubspaceIntervention)])
                )
                raise RoadError(
                    f"{type(self).__name__} has no argument {quoted(name)}: expected one of {listing(own)}{did_you_mean(name, own)}"
                )
        if sum(given is not None for given in (subspace, subspaces, subspace_partition)) > 1:
            raise RoadError(
                "subspace, subspaces and subspace_partition say the same thing: expected only one of them"
            )
        if subspaces is not None and (not isinstance(subspaces, Mapping) or not subspaces):
            raise RoadError(
                f"subspaces {quoted(subspaces)}: expected at least one by name, such as {{'german': '[0, d/2)'}}"
            )
        # Where neither is said, a pyvene configuration may say it; without one it is the first layer's output.
        self._said = {
            name
            for name, given in (("layer", layer), ("component", component))
            if given is not None
        }
        self.layer = 0 if layer is None else layer_index(layer)
        self.component = "block_output" if component is None else component_name(component)
        self.position = Position.parse(position, phase)
        # pyvene's `subspaces` mean dims where there is no partition, else indices into it.
        self.counts_dims = subspaces is None and subspace_partition is None
        if subspace_partition is not None:
            subspaces = {
                f"subspace_{index}": part for index, part in enumerate(parts_of(subspace_partition))
            }
        self._subspaces = (
            subspaces
            if subspaces is not None
            else {WHOLE: "[0, d)" if subspace is None else subspace}
        )
        self._told_width = None if embed_dim is None else told_width(embed_dim, max_number_of_units)
        # pyvene's own `load` makes it so, and never loads the values of one whose source is constant.
        self._lacks_values = bool(kwargs.get("hidden_source_representation"))

    def _bind_as_told(self) -> None:
        """The last thing that a kind's own __init__ does: settle the width, where it was given, or wait for it."""
        if self._told_width is None:
            wait_for(self, self._parameter_names())
        else:
            self.bind(self._told_width)

    def bind(self, width: int) -> "SubspaceIntervention":
        """Settle the width: check the subspaces against it and make the parameters. Returns self; raises RoadError."""
        if self.bound:
            if self.width != width:
                raise RoadError(
                    f"the intervention at layer {self.layer} has width {self.width}, the model has {width}"
                )
            return self
        waiting = dict(self.named_parameters())
        with torch.inference_mode(False):  # they may be trained later
            partition = self._build(width)
            keep_objects(self, waiting)
            self.embed_dim = torch.tensor(width)
            self.interchange_dim = torch.tensor(width)
            for parameter in waiting.values():
                self.to(parameter.device)  # what is no parameter, too
        self.partition = partition
        return self

    def _parameter_names(self) -> Sequence[str]:
        """The dotted names of the parameters that `_build` makes."""
        return ()

    def keep_site(self) -> None:
        """Count the layer and the component as said: somebody relies on them."""
        self._said = {"layer", "component"}

    def representation(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of pyvene's RepresentationConfig. given: what the user's configuration says beside the intervention.

        Layer and component are said once, or twice the same; what only the configuration says becomes the intervention's own.
        Raises RoadError where they disagree, and for a field that would not be heeded.
        """
        fields = pyvene.RepresentationConfig._fields
        for name in given:
            if name not in fields:
                raise RoadError(
                    f"pyvene's representations have no field {quoted(name)}: expected one of {listing(fields)}"
                )
        if given.get("subspace_partition") is not None:
            raise RoadError(
                f"subspace_partition is the intervention's own: expected {type(self).__name__}(subspace_partition=…)"
            )
        rank, given_rank = getattr(self, "rank", None), given.get("low_rank_dimension")
        if None not in (rank, given_rank) and rank != given_rank:
            raise RoadError(
                f"low_rank_dimension {quoted(given_rank)} for an intervention of rank {rank}: expected the same"
            )
        self._take_site(given)
        self._take_source(given.get("source_representation"))
        return {**given, "layer": self.layer, "component": self.component}

    def _take_site(self, given: Mapping[str, Any]) -> None:
        layer, component = given.get("layer"), given.get("component")
        layer = None if layer is None else layer_index(layer)
        component = None if component is None else component_name(component)
        for name, own, other in (
            ("layer", self.layer, layer),
            ("component", self.component, component),
        ):
            if name in self._said and other is not None and other != own:
                raise RoadError(
                    f"the configuration says {name} {quoted(other)}, its {type(self).__name__} {quoted(own)}: "
                    f"expected the {name} said once, or twice the same"
                )
        wanted = self.layer if "layer" in self._said else layer
        if component is not None and "." in component:
            wanted = layer_in_path(component, wanted)
        self.layer = self.layer if wanted is None else wanted
        self.component = component or self.component

    def _take_source(self, source: Any) -> None:
        """A constant source that the configuration says."""
        if source is not None:
            raise RoadError(
                f"{type(self).__name__} takes no source: expected no source_representation"
            )

    @classmethod
    def prepare(cls, model: nn.Module, component: str) -> None:
        """Tell pyvene about this type of model, where it does not know it. Raises RoadError for one without decoder layers."""
        if type(model) not in pyvene.type_to_module_mapping and "." not in str(component):
            register(model)

    def settle(self, model: nn.Module, representation: Any, module: nn.Module) -> None:
        """Learn the width, where the model tells it, and move to the device of the module whose states are edited."""
        if representation.component == "block_output":
            check_layer(model, representation.layer, module)
        width = None if self.bound else width_at(model, representation.component, module)
        if width is not None:
            self.bind(width)
        placed = next(module.parameters(), None)
        if placed is not None and placed.device.type != "meta":
            self.to(placed.device)

    @classmethod
    def recipe_fields(cls) -> tuple[str, ...]:
        """The arguments that a recipe may say, beside the layers; a kind adds its own to these."""
        return ("component", "position", "phase", "subspaces")

    def _build(self, width: int) -> Partition:
        """Make the parameters for hidden states of `width` dims; returns the partition of the units."""
        raise NotImplementedError

    @property
    def bound(self) -> bool:
        """Whether the width is known and the parameters exist."""
        return hasattr(self, "partition")

    @property
    def width(self) -> int:
        """The width of the hidden state. Raises RoadError before it is known."""
        self._check_bound()
        return int(self.embed_dim)

    @property
    def trainable_count(self) -> int:
        """How many numbers train."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """The arguments that make this intervention again, without its values, as plain JSON values."""
        return {
            "layer": self.layer,
            "component": self.component,
            "position": str(self.position),
            "phase": self.position.phase,
            "subspaces": {name: str(subspace) for name, subspace in self.partition.items()},
            "embed_dim": self.width,
        }

    def values(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: every parameter by its name, detached."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def strengths(self, compositions: Sequence[Composition]) -> Tensor:
        """[rows, units] float32 on the parameters' device: how strongly each unit acts for each composition."""
        self._check_bound()
        distinct = {
            composition: index for index, composition in enumerate(dict.fromkeys(compositions))
        }
        table = torch.stack(
            [self.partition.strengths(dict(composition.terms)) for composition in distinct]
        )
        self._check_strengths(table)
        index = torch.tensor([distinct[composition] for composition in compositions])
        return table[index].to(next(self.parameters()).device)

    def _check_strengths(self, strengths: Tensor) -> None:
        """Raises RoadError for a strength at which the intervention is not defined; strengths: [rows, units], on the CPU."""

    @property
    def _may_wait(self) -> bool:
        """Whether values may be looked at; a training step should not wait for the device."""
        return not (self.training and torch.is_grad_enabled())

    def _check_finite(self, strengths: Tensor, *values: Tensor) -> None:
        """Raises RoadError where something acts and values are not finite."""
        broken = torch.stack([~value.isfinite().all() for value in values]).any()
        if bool(broken & (strengths != 0).any()):
            raise RoadError(
                f"the values of the intervention at layer {self.layer} are not finite: expected numbers, such as those of a "
                "training at a lower rate; compose without it, or load a checkpoint"
            )

    def rows(self, strengths: Tensor, learning: Tensor | None = None) -> Rows:
        """What the rows are edited with. strengths: [rows, units]. learning: [rows, units] bool, what gets a row's gradient."""
        raise NotImplementedError

    def edit(self, h: Tensor, rows: Any, source: Tensor | None = None) -> Tensor:
        """The edited hidden states; h: [..., width], rows: of the same leading shape. Same dtype out.

        source: [..., width], the hidden states of another input, where the intervention takes them.
        """
        raise NotImplementedError

    def rescale(self, strengths: Mapping[str, float]) -> None:
        """Make strength s of each named subspace the new strength 1, in place. Raises RoadError for an unknown name."""
        composition = Composition.parse(
            dict.fromkeys(self.partition, 1.0) | dict(strengths), self.partition
        )
        with torch.no_grad():
            # What no subspace holds never acts: its strength 0 would be the identity too, but its values stay.
            unheld = 1 - self.strengths([Composition.parse(ALL, self.partition)])[0]
            self._rescale(self.strengths([composition])[0] + unheld)

    def _rescale(self, strengths: Tensor) -> None:
        """Each unit at its own strength, [units], as its new values."""
        raise NotImplementedError

    def forward(
        self, base: Tensor, source: Tensor | None = None, subspaces: Any = None, **kwargs: Any
    ) -> Tensor:
        """pyvene's entry. base: [rows, …, width], any number of heads and positions between; the dtype is kept.

        subspaces: None (all of them), a composition for all rows ("german", "a + 0.5*b"), or one entry a row: a composition, or a
        list of names, of indices into the partition or, where the intervention names no subspaces, of dims (whole blocks). None
        in a row's place, and an empty list, leave the row as it is. Raises RoadError otherwise.

        Where the width was not known, it is now that of base.
        """
        del kwargs
        self._check_states(base, source)
        rows = base.shape[0]
        if not base.numel():
            return base
        index = torch.arange(rows, device=base.device)
        acting = self.rows(self._strengths_of(subspaces, rows))
        return self.edit(
            base,
            acting.row(index.reshape(-1, *(1,) * (base.ndim - 2))),
            source if self.takes_source else None,
        )

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
                "pyvene's load brings no values of one with a constant source: expected roadint.interop.pyvene.load"
            )
        placed = next(self.parameters()).device
        if placed != base.device:
            raise RoadError(
                f"hidden states on {base.device} for an intervention on {placed}: expected .to({str(base.device)!r}) first"
            )
        if source is not None and self.takes_source:
            check_source(source, base)

    def _strengths_of(self, subspaces: Any, rows: int) -> Tensor:
        names = list(self.partition)
        if subspaces is None or isinstance(subspaces, (str, Mapping, Composition)):
            return self.strengths(
                [Composition.parse(ALL if subspaces is None else subspaces, names)] * rows
            )
        dims_of = WHOLE if self.counts_dims else None
        chosen = [
            chosen_by(entry, self.partition, dims_of) for entry in entries_of(subspaces, rows)
        ]
        compositions = [each for each in chosen if isinstance(each, Composition)]
        if len(compositions) == rows:
            return self.strengths(compositions)
        table = [
            self.partition.strengths(dict(each.terms)) if isinstance(each, Composition) else each
            for each in chosen
        ]
        strengths = torch.stack(table)
        self._check_strengths(strengths)
        return strengths.to(next(self.parameters()).device)

    def _state_arguments(self) -> dict[str, Any]:
        """The arguments that make it again, in the form in which they were given: one that counts dims still does."""
        arguments = self.spec()
        if self.counts_dims:
            arguments["subspace"] = arguments.pop("subspaces")[WHOLE]
        return arguments

    def get_extra_state(self) -> Tensor:
        """The arguments as JSON bytes, for state_dict: pyvene's `save` keeps the values alone."""
        return torch.frombuffer(
            bytearray(json.dumps(self._state_arguments()).encode()), dtype=torch.uint8
        )

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: `_load_from_state_dict` has read it before the values."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._check_bound()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}{name}": value for name, value in self._measured().items()})

    def _measured(self) -> dict[str, Tensor]:
        """What `values` has beside the parameters."""
        own = dict(self.named_parameters())
        return {name: value for name, value in self.values().items() if name not in own}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            self._become(arguments_of(state), state_dict, prefix)
        self._check_bound()
        for name, value in self._measured().items():
            saved = state_dict.pop(f"{prefix}{name}", None)
            if saved is not None:
                check_shape(name, saved, value)
                value.copy_(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._lacks_values = False

    def _become(
        self, arguments: dict[str, Any], state_dict: Mapping[str, Any], prefix: str
    ) -> None:
        """Be what the arguments say, but at the site that was said; parameters, hooks and modes stay what they were.

        It has other arguments after pyvene's `load`, which knows only its own fields.
        """
        own_site = {"layer": self.layer, "component": self.component}
        arguments |= {name: own_site[name] for name in self._said}
        if self.bound and arguments == self._state_arguments():
            return
        if self.bound and arguments.get("embed_dim") != self.width:
            raise RoadError(
                f"values for width {quoted(arguments.get('embed_dim'))} in an intervention of width {self.width}"
            )
        values = {
            name.removeprefix(prefix): value
            for name, value in state_dict.items()
            if name.startswith(prefix)
        }
        check_fits(type(self), arguments, values)
        become(self, type(self)(**arguments))

    def _check_bound(self) -> None:
        if not self.bound:
            raise RoadError(
                f"the intervention at layer {self.layer} does not know its width yet: "
                "give embed_dim=…, or hand it to RoadModel or pyvene_config"
            )

    def extra_repr(self) -> str:
        """What `print` shows of it, inside and outside a model."""
        subspaces = dict(self.partition) if self.bound else dict(self._subspaces)
        listed = ", ".join(f"{name}={subspace}" for name, subspace in subspaces.items())
        return f"layer={self.layer}, component={self.component}, position={self.position}, {listed}"

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class EditIntervention(SourcelessIntervention, SubspaceIntervention):
    """The base class of the interventions that edit a hidden state by itself, without a source."""


def subspace_names(interventions: Iterable[SubspaceIntervention]) -> list[str]:
    """The names of all their subspaces, in order, each once: what a composition may use."""
    return list(
        dict.fromkeys(name for intervention in interventions for name in intervention.partition)
    )


def _arguments(kind: type) -> list[str]:
    """The names that its __init__ gives its arguments, but for the rest that it passes on."""
    parameters = inspect.signature(kind).parameters.values()
    return [
        parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD
    ]
