"""The interventions of a model, and what a call lowers them to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, overload

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from roadint.architecture.devices import on_device
from roadint.architecture.layers import site_path
from roadint.architecture.properties import device_of, width_of
from roadint.engines.call import Call, Source
from roadint.engines.interchange_sources import AlignedSource, align, check_source
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import Composition
from roadint.grammar.position import Position, Tokens
from roadint.interventions.base import Rows, SubspaceIntervention, subspace_names
from roadint.interventions.sums import check_sums, label_of


@dataclass(frozen=True)
class LoweredIntervention:
    """What a call does at one site: which rows it edits, at which tokens, with which rotations.

    Args:
        intervention: The intervention.
        path: The path of the module whose output is edited.
        position: The tokens that are edited.
        acting: True for the rows that are edited.
        rows: What the rows are edited with.
        source: What an interchange takes; None where it takes nothing.
    """

    intervention: SubspaceIntervention
    path: str
    position: Position | Tokens
    acting: Bool[Tensor, " rows"]
    rows: Rows
    source: AlignedSource | None


class Interventions(nn.ModuleList):
    """Interventions at the hidden states of a model, in the order in which they act.

    It never changes: `plus` and `without` return a new one, so a running call is not disturbed.

    Args:
        interventions: The interventions.
        paths: For each intervention, the path of the module whose output it edits.
    """

    def __init__(
        self, interventions: Iterable[SubspaceIntervention] = (), paths: Iterable[str] = ()
    ) -> None:
        super().__init__()
        for index, intervention in enumerate(interventions):
            self.add_module(str(index), intervention)
        self.paths = tuple(paths)

    @classmethod
    @torch.inference_mode(False)
    def on(cls, model: nn.Module, interventions: Sequence[SubspaceIntervention]) -> "Interventions":
        """Give interventions the model's width, and move them to the devices of their layers.

        Raises:
            RoadError: where a layer, a component or a width does not fit the model.
        """
        paths = [site_path(model, edit.layer, edit.component) for edit in interventions]
        for intervention, path in zip(interventions, paths, strict=True):
            intervention.bind(width_of(model)).keep_site()
            device = device_of(model.get_submodule(path))
            if device is not None:
                intervention.to(device)
        return cls(interventions, paths)

    def plus(self, others: "Interventions") -> "Interventions":
        """Add interventions, which act after these."""
        return Interventions([*self, *others], [*self.paths, *others.paths])

    def without(self, label: str) -> "Interventions":
        """Leave out the interventions of the checkpoint that was loaded as `label`."""
        rest = [
            (intervention, path)
            for intervention, path in zip(self, self.paths, strict=True)
            if label_of(intervention) != label
        ]
        return Interventions(*zip(*rest, strict=True)) if rest else Interventions()

    @property
    def names(self) -> list[str]:
        """The names of all subspaces, which a composition may use."""
        return subspace_names(self)

    @property
    def labels(self) -> set[str]:
        """The labels of the checkpoints that they come from; "" for one without a label."""
        return {label_of(intervention) for intervention in self}

    @property
    def trainable_count(self) -> int:
        """How many numbers train."""
        return sum(intervention.trainable_count for intervention in self)

    def spec(self) -> list[dict[str, Any]]:
        """For each intervention, the arguments that make it again, as plain JSON values."""
        return [intervention.spec() for intervention in self]

    def check(self, compositions: Sequence[Composition]) -> None:
        """Check that compositions sum only what commutes.

        Raises:
            RoadError: where the order of a sum would matter.
        """
        check_sums(list(self), compositions)

    def lower(self, call: Call) -> list[LoweredIntervention]:
        """What a call does, one entry for each intervention that acts.

        Raises:
            RoadError: where a position is outside of a row, sources do not fit, values are not
                finite, or generated tokens are to be edited in a call that has none.
        """
        if isinstance(call.positions, Tokens):
            call.positions.check(call.prompt_end)
        lowered = []
        for intervention, path, source in zip(self, self.paths, self._sources(call), strict=True):
            acting = _acting(intervention, call)
            if call.sources is not None and source is None and _takes_from_the_call(intervention):
                continue
            if any(acting) or source is not None:
                edit = _lower(intervention, path, source, acting, call)
                lowered += [edit] if any(acting) else []
        return lowered

    def _sources(self, call: Call) -> Sequence[Source | None]:
        if call.sources is None:
            return [None] * len(self)
        if len(call.sources) != len(self):
            raise RoadError(
                f"{len(call.sources)} sources for {len(self)} interventions: expected one each, "
                "None where none is taken"
            )
        return call.sources

    def __iter__(self) -> Iterator[SubspaceIntervention]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    @overload  # type: ignore[override]
    def __getitem__(self, index: int) -> SubspaceIntervention: ...
    @overload
    def __getitem__(self, index: slice) -> list[SubspaceIntervention]: ...
    def __getitem__(self, index: int | slice) -> SubspaceIntervention | list[SubspaceIntervention]:
        return list(self)[index]

    def _refuse(self, *_: Any) -> NoReturn:
        raise RoadError(
            "the interventions of a model do not change in place: expected RoadModel(model, "
            "[…, another]) or add_checkpoint"
        )

    append = extend = insert = pop = __setitem__ = __delitem__ = __iadd__ = _refuse  # type: ignore[assignment]


def listed_interventions(interventions: Any) -> list[SubspaceIntervention]:
    """One intervention, or a list of them, as a list.

    Raises:
        RoadError: for anything else.
    """
    if isinstance(interventions, SubspaceIntervention):
        return [interventions]
    listed: list[Any] = []
    if isinstance(interventions, Iterable) and not isinstance(interventions, (str, bytes, Mapping)):
        try:
            listed = list(interventions)
        except TypeError:  # an array without dimensions, which claims to be iterable
            listed = [interventions]
        if all(isinstance(item, SubspaceIntervention) for item in listed):
            return listed
    wrong = [item for item in listed if not isinstance(item, SubspaceIntervention)]
    raise RoadError(
        f"interventions are {quoted(wrong[0] if wrong else interventions)}: expected a "
        "RoadIntervention or a list of such"
    )


def _acting(intervention: SubspaceIntervention, call: Call) -> list[bool]:
    """For each row whether an intervention acts: the composition names one of its subspaces."""
    return [
        any(name in intervention.partition for name, _ in composition.terms)
        for composition in call.compositions
    ]


def _takes_from_the_call(intervention: SubspaceIntervention) -> bool:
    """Whether an intervention takes its source from the call, having no constant one."""
    return intervention.takes_source and intervention.source_representation is None


def _lower(
    intervention: SubspaceIntervention,
    path: str,
    source: Source | None,
    acting_rows: Sequence[bool],
    call: Call,
) -> LoweredIntervention:
    acting = on_device(acting_rows, call.kept.device)
    position = call.positions or intervention.position
    if any(acting_rows) and isinstance(position, Position):
        _check_position(position, intervention.layer, acting_rows, call)
    learning = None
    if call.learning is not None:
        learning = intervention.strengths(call.learning) != 0
    rows = intervention.rows(intervention.strengths(call.compositions), learning)
    aligned = None
    if source is not None:
        check_source(source, intervention.width, intervention.layer)
        device = next(intervention.parameters()).device  # they may have been kept elsewhere
        source = [states.to(device) for states in source]
        edited = call.edited(position) & acting[:, None]
        aligned = align(source, edited, position.after_prompt, intervention.layer)
    return LoweredIntervention(intervention, path, position, acting, rows, aligned)


def _check_position(
    position: Position, layer: int, acting_rows: Sequence[bool], call: Call
) -> None:
    none_generated = call.prompt_length is None and not call.generates
    if none_generated and position.phase == "generated":
        raise RoadError(
            f"the intervention at layer {layer} edits generated tokens alone, and this call has "
            "none: give prompt_length, what of each row is the prompt, or let generate run"
        )
    if position.names_tokens:  # it waits for the device
        position.check(call.prompt_end[[row for row, acts in enumerate(acting_rows) if acts]])
