"""What every intervention of roadint shares: where it acts, its named subspaces, and the strengths of each row's composition.

An intervention runs in pyvene's IntervenableModel and in roadint's RoadModel alike; both turn a row's composition into strengths,
one a unit (a block of RoAd, a row of LoReFT), and those into what the row's hidden states are edited with.
"""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from roadint._pyvene import DistributedRepresentationIntervention, SourcelessIntervention, TrainableIntervention
from roadint.composition import ALL, Composition
from roadint.errors import RoadError, did_you_mean, listing
from roadint.position import Phase, Position
from roadint.precision import KeepsPrecision
from roadint.subspace import Partition, Subspace, SubspaceLike, of_partition

# The other fields of pyvene's RepresentationConfig; they say nothing that an intervention of ours needs.
_PYVENE_FIELDS = {"unit", "low_rank_dimension", "intervention_type", "intervention", "group_key", "intervention_link_key"}
_PYVENE_FIELDS |= {"moe_key", "hidden_source_representation", "latent_dim", "use_fast", "keep_last_dim"}

WHOLE = "road"  # the name of the one subspace of an intervention that names none


class Rows(Protocol):
    """What the rows of a batch are edited with; a Rotation, for RoAd."""

    def row(self, index: Tensor) -> "Rows":
        """Those of the rows `index`, int of any shape: the leading shape of the hidden states that they edit."""


class SubspaceIntervention(KeepsPrecision, TrainableIntervention, DistributedRepresentationIntervention):  # type: ignore[misc]
    """The base class: a site, a partition of the intervention's units into named subspaces, and an edit at given strengths.

    A kind of intervention says what its units are (`_build`), what a row is edited with (`rows`) and how (`edit`), which
    arguments make it again (`spec`), and what its values at another strength are (`rescale`).
    """

    takes_source = False  # whether an edit needs the hidden states of another input

    kind: str  # the name of this kind in recipes and checkpoints
    partition: Partition

    def __init__(
        self,
        *,
        layer: int = 0,
        component: str = "block_output",
        position: str | Position = "last",
        phase: Phase = "prompt",
        subspace: SubspaceLike = None,
        subspaces: Mapping[str, SubspaceLike] | None = None,
        embed_dim: int | Tensor | None = None,
        subspace_partition: Sequence[Sequence[int]] | None = None,
        max_number_of_units: int = 1,
        **kwargs: Any,  # what pyvene gives an intervention_type besides; see _PYVENE_FIELDS
    ) -> None:
        super().__init__(keep_last_dim=True, use_fast=kwargs.get("use_fast", False))
        if kwargs.get("source_representation") is None:
            kwargs.pop("source_representation", None)  # pyvene gives all of its fields
        for name in kwargs:
            if name not in _PYVENE_FIELDS:
                own = list(dict.fromkeys([*_arguments(type(self)), *_arguments(SubspaceIntervention)]))
                raise RoadError(
                    f"{type(self).__name__} has no argument {name!r}: expected one of {listing(own)}{did_you_mean(name, own)}"
                )
        if sum(given is not None for given in (subspace, subspaces, subspace_partition)) > 1:
            raise RoadError("subspace, subspaces and subspace_partition say the same thing: expected only one of them")
        if not isinstance(layer, int) or layer < 0:
            raise RoadError(f"layer {layer!r} is no index: expected an integer from 0")
        self.layer, self.component = layer, component
        self.position = Position.parse(position, phase)
        # pyvene's `subspaces` mean dims where there is no partition, else indices into it.
        self.counts_dims = subspaces is None and subspace_partition is None
        if subspace_partition is not None:
            subspaces = of_partition(subspace_partition)
        self._subspaces = subspaces if subspaces is not None else {WHOLE: "[0, d)" if subspace is None else subspace}
        # pyvene multiplies the width by the number of positions, although keep_last_dim keeps them apart.
        self._told_width = None if embed_dim is None else int(embed_dim) // max_number_of_units

    def _bind_as_told(self) -> None:
        """The last thing that a kind's own __init__ does: settle the width, where it was given."""
        if self._told_width is not None:
            self.bind(self._told_width)

    def bind(self, width: int) -> "SubspaceIntervention":
        """Settle the width: check the subspaces against it and make the parameters. Returns self; raises RoadError."""
        if self.bound:
            if self.width != width:
                raise RoadError(f"the intervention at layer {self.layer} has width {self.width}, the model has {width}")
            return self
        self.partition = self._build(width)
        self.embed_dim = torch.tensor(width)
        self.interchange_dim = torch.tensor(width)
        return self

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
        distinct = {composition: index for index, composition in enumerate(dict.fromkeys(compositions))}
        table = torch.stack([self.partition.strengths(dict(composition.terms)) for composition in distinct])
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
        composition = Composition.parse(dict.fromkeys(self.partition, 1.0) | dict(strengths), self.partition)
        with torch.no_grad():
            # What no subspace holds never acts: its strength 0 would be the identity too, but its values stay.
            unheld = 1 - self.strengths([Composition.parse(ALL, self.partition)])[0]
            self._rescale(self.strengths([composition])[0] + unheld)

    def _rescale(self, strengths: Tensor) -> None:
        """Each unit at its own strength, [units], as its new values."""
        raise NotImplementedError

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None, **kwargs: Any) -> Tensor:
        """pyvene's entry. base: [rows, …, width], any number of heads and positions between; the dtype is kept.

        subspaces: None (all of them), or one entry a row: a composition ("german", "a + 0.5*b"), or a list of names, of indices
        into the partition or, where the intervention names no subspaces, of dims (whole blocks). Raises RoadError otherwise.
        """
        del kwargs
        if base.shape[-1] != self.width:
            raise RoadError(f"hidden states of width {base.shape[-1]} for an intervention of width {self.width}")
        index = torch.arange(base.shape[0], device=base.device)
        rows = self.rows(self._strengths_of(subspaces, base.shape[0]))
        return self.edit(base, rows.row(index.reshape(-1, *(1,) * (base.ndim - 2))), source if self.takes_source else None)

    def _strengths_of(self, subspaces: Any, rows: int) -> Tensor:
        names = list(self.partition)
        if subspaces is None:
            return self.strengths([Composition.parse(ALL, names)] * rows)
        entries = list(subspaces)
        if len(entries) != rows:
            raise RoadError(f"{len(entries)} entries in subspaces for {rows} rows: expected one a row")
        if self.counts_dims and any(_is_dims(entry) for entry in entries):
            return torch.stack([self._strengths_of_dims(entry) for entry in entries])
        return self.strengths([Composition.parse(self._as_composition(entry, names), names) for entry in entries])

    def _strengths_of_dims(self, dims: Any) -> Tensor:
        if not _is_dims(dims):
            return self.strengths([Composition.parse(dims, list(self.partition))])[0]
        chosen = Subspace.from_dims(dims, self.partition.width, self.partition.unit)
        outside = sorted(set(chosen.blocks) - set(self.partition[WHOLE].blocks))
        if outside:
            first = outside[0] * self.partition.unit
            named = f"dims {first} and {first + 1} are" if self.partition.unit == 2 else f"row {first} is"
            raise RoadError(f"{named} outside the subspace {self.partition[WHOLE]}")
        strengths = torch.zeros(self.partition.count)
        strengths[torch.tensor(chosen.blocks)] = 1.0
        return strengths.to(next(self.parameters()).device)

    @staticmethod
    def _as_composition(entry: Any, names: list[str]) -> Any:
        if entry is None or isinstance(entry, (str, Mapping, Composition)):
            return entry
        chosen: dict[str, float] = {}
        for item in entry if isinstance(entry, Sequence) or torch.is_tensor(entry) else [entry]:
            name = item
            if not isinstance(item, str):
                if not 0 <= int(item) < len(names):
                    raise RoadError(f"subspace index {int(item)} is outside the partition: expected 0 to {len(names) - 1}")
                name = names[int(item)]
            chosen[name] = 1.0
        return chosen

    def get_extra_state(self) -> Tensor:
        """The arguments as JSON bytes, for state_dict: pyvene's `save` keeps the values alone."""
        return torch.frombuffer(bytearray(json.dumps(self.spec()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: `_load_from_state_dict` has read it before the values."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            arguments = json.loads(bytes(state.tolist()).decode())
            if not self.bound or arguments != self.spec():
                # What pyvene's `load` has built from its own fields alone.
                device = next((parameter.device for parameter in self.parameters()), None)
                self.__dict__.clear()
                self.__init__(**arguments)  # type: ignore[misc]
                self.to(device)
        super()._load_from_state_dict(state_dict, prefix, *args)

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


class EditIntervention(SourcelessIntervention, SubspaceIntervention):  # type: ignore[misc]
    """The base class of the interventions that edit a hidden state by itself, without a source."""


def subspace_names(interventions: Iterable[SubspaceIntervention]) -> list[str]:
    """The names of all their subspaces, in order, each once: what a composition may use."""
    return list(dict.fromkeys(name for intervention in interventions for name in intervention.partition))


def _arguments(kind: type) -> list[str]:
    """The names that its __init__ gives its arguments, but for the rest that it passes on."""
    parameters = inspect.signature(kind).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def _is_dims(entry: Any) -> bool:
    """Whether a row's entry counts dims: a sequence or tensor of integers."""
    if torch.is_tensor(entry):
        return True
    return isinstance(entry, (Sequence, range)) and not isinstance(entry, str) and all(isinstance(i, int) for i in entry)
