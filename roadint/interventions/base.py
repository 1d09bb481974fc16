"""The base class of all kinds of interventions: a site, named subspaces, an edit at some strengths.

An intervention turns a row's composition into strengths, one for every unit (a block of RoAd, a
matrix row of LoReFT), and the strengths into what the row's hidden states are edited with. How
pyvene runs an intervention is in `roadint.interventions.pyvene.entry`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from roadint.architecture.devices import on_device
from roadint.errors import RoadError, check_known, quoted
from roadint.files.rules import Rule, Shapes
from roadint.grammar.composition import ALL, Composition
from roadint.grammar.position import Phase, Position
from roadint.grammar.subspace import Partition, SubspaceLike
from roadint.interventions.arguments import component_name, layer_index
from roadint.rotation.basis import Axes, Frame
from roadint.rotation.parameters import KeepsPrecision, keep_objects, register_waiting
from roadint.rotation.rotation import Rotation

if TYPE_CHECKING:
    from typing_extensions import Self

WHOLE = "road"  # the subspace of an intervention that names none


class Rows(Protocol):
    """What the rows of a batch are edited with: for RoAd, a Rotation."""

    def row(self, index: Int[Tensor, "..."]) -> "Rows":
        """Select rows; `index` has the leading shape of the hidden states to edit."""


class SubspaceIntervention(KeepsPrecision):
    """A site, a partition of units into named subspaces, and an edit.

    A kind is a subclass of `EditIntervention` or `PyveneEntry`, decorated with
    `roadint.interventions.registry.register`. It has to implement:

    - its parameters: `_parameter_names`, and `_build`, which makes them;
    - what a row is edited with, `rows`, and the edit, `edit`;
    - `trainable_count`;
    - `_rescale`, its values at another strength;
    - where it has more arguments: `spec`, `rules` and `recipe_fields`.

    It may override how it is trained (`unit_parameters`, `scale_parameters`, `unmeasured_axes`),
    the tensors of its checkpoints (`needed_tensors`), what it commutes with (`why_order_matters`)
    and what is shown of it (`short_name`, `summary`, `angles_and_scales`).

    Until the width is known, parameters are UninitializedParameters, which are filled in place.

    Args:
        layer: The layer, from 0; 0 by default.
        component: "block_output" (the default), "attention_output" or "mlp_output".
        position: The tokens that are edited; see `roadint.grammar.position.Position`.
        phase: "prompt", "generated" or "both".
        subspace: A single subspace, which is named "road"; the whole width by default.
        subspaces: Named subspaces, in place of a single one.
        embed_dim: The width of the hidden states; None where a model sets it later.

    Raises:
        RoadError: where an argument does not fit.
    """

    kind: str  # its name in recipes and checkpoints; `register` sets it
    takes_source = False  # whether an edit needs the hidden states of another input
    turns = False  # whether an edit is a turn of pairs in a basis: see `as_turn`
    partition: Partition
    source_representation: Tensor | None  # a constant source [width], for every call

    def __init__(
        self,
        *,
        layer: int | None = None,
        component: str | None = None,
        position: str | Position = "last",
        phase: Phase = "prompt",
        subspace: SubspaceLike = None,
        subspaces: Mapping[str, SubspaceLike] | None = None,
        embed_dim: int | None = None,
    ) -> None:
        super().__init__()
        if subspace is not None and subspaces is not None:
            raise RoadError("subspace and subspaces say the same thing: expected only one of them")
        if subspaces is not None and (not isinstance(subspaces, Mapping) or not subspaces):
            raise RoadError(
                f"subspaces {quoted(subspaces)}: expected at least one by name, "
                "such as {'german': '[0, d/2)'}"
            )
        # A pyvene configuration may set what is not set here.
        site = {"layer": layer, "component": component}
        self._said = {name for name, value in site.items() if value is not None}
        self.layer = 0 if layer is None else layer_index(layer)
        self.component = "block_output" if component is None else component_name(component)
        self.position = Position.parse(position, phase)
        whole: SubspaceLike = "[0, d)" if subspace is None else subspace
        self._subspaces = {WHOLE: whole} if subspaces is None else subspaces
        self._first_width = embed_dim

    # The width, and what is made for it.

    def _bind_first(self) -> None:
        """Take the width, where it is known; the last step of a kind's __init__."""
        if self._first_width is None:
            register_waiting(self, self._parameter_names())
        else:
            self.bind(self._first_width)

    def bind(self, width: int) -> "Self":
        """Set the width: check the subspaces against it, and make the parameters.

        Args:
            width: The width of the hidden states, in dims.

        Returns:
            The intervention itself.

        Raises:
            RoadError: where another width is set already, or a subspace does not fit.
        """
        if not self.bound:
            self._make(width)
        elif self.width != width:
            raise RoadError(
                f"the intervention at layer {self.layer} has width {self.width}, "
                f"the model has {width}"
            )
        return self

    def _make(self, width: int) -> None:
        """Build for this width; the objects of the parameters stay the same."""
        parameters = dict(self.named_parameters())
        with torch.inference_mode(False):  # they may be trained later
            partition = self._build(width)
            keep_objects(self, parameters)
            for parameter in parameters.values():
                self.to(parameter.device)  # buffers too
        self.partition, self._width = partition, width

    def _parameter_names(self) -> Sequence[str]:
        """The dotted names of the parameters that `_build` makes."""
        return ()

    def _build(self, width: int) -> Partition:
        """Make the parameters for this width; returns the partition of the units."""
        raise NotImplementedError

    @property
    def bound(self) -> bool:
        """Whether the width is known and the parameters exist."""
        return hasattr(self, "partition")

    @property
    def width(self) -> int:
        """The width of the hidden states; RoadError before it is known."""
        self._check_bound()
        return self._width

    def _check_bound(self) -> None:
        if not self.bound:
            raise RoadError(
                f"the intervention at layer {self.layer} does not know its width yet: "
                "give embed_dim=…, or hand it to RoadModel or pyvene_config"
            )

    def keep_site(self) -> None:
        """Fix layer and component, so that loading values does not change them."""
        self._said = {"layer", "component"}

    # The edit.

    def strengths(self, compositions: Sequence[Composition]) -> Float[Tensor, "rows units"]:
        """How strongly each unit acts in each row, on the parameters' device.

        Args:
            compositions: One a row.

        Raises:
            RoadError: for a strength at which the intervention is not defined.
        """
        self._check_bound()
        distinct = list(dict.fromkeys(compositions))
        table = torch.stack([self.partition.strengths(dict(row.terms)) for row in distinct])
        self._check_strengths(table)
        numbers = {composition: number for number, composition in enumerate(distinct)}
        index = torch.tensor([numbers[composition] for composition in compositions])
        return on_device(table[index], next(self.parameters()).device)

    def _check_strengths(self, strengths: Float[Tensor, "rows units"]) -> None:
        """Refuse strengths (on the CPU) at which the intervention is not defined."""

    @property
    def _may_wait(self) -> bool:
        """Whether values may be read: a training step should not wait for the device."""
        return not (self.training and torch.is_grad_enabled())

    def _check_finite(self, strengths: Float[Tensor, "rows units"], *values: Tensor) -> None:
        """Refuse values that act and are not finite."""
        broken = torch.stack([~value.isfinite().all() for value in values]).any()
        if bool(broken & (strengths != 0).any()):
            raise RoadError(
                f"the values of the intervention at layer {self.layer} are not finite: "
                "expected numbers, such as those of a training at a lower rate; "
                "compose without it, or load a checkpoint"
            )

    def rows(
        self,
        strengths: Float[Tensor, "rows units"],
        learning: Bool[Tensor, "rows units"] | None = None,
    ) -> Rows:
        """What the rows of a batch are edited with.

        Args:
            strengths: What `strengths` returns.
            learning: True for the units that get a row's gradient; all of them by default.
        """
        raise NotImplementedError

    def edit(
        self,
        h: Float[Tensor, "*rows width"],
        rows: Any,
        source: Float[Tensor, "*rows width"] | None = None,
    ) -> Float[Tensor, "*rows width"]:
        """The edited hidden states, in the dtype of `h`.

        Args:
            h: The hidden states.
            rows: What `rows` returned, with the same leading shape.
            source: Hidden states of another input, where the kind takes a source.
        """
        raise NotImplementedError

    def as_turn(self, rows: Any) -> tuple[Rotation, Frame | None] | None:
        """The rotation and its basis, where the edit is no more than that.

        Engines run it in one launch, and in compiled graphs.

        Args:
            rows: What `rows` returned.

        Returns:
            None for another kind of edit.
        """
        return None

    # The arguments and the values.

    def spec(self) -> dict[str, Any]:
        """The arguments that make this intervention again, without its values, as plain JSON."""
        return {
            "layer": self.layer,
            "component": self.component,
            "position": str(self.position),
            "phase": self.position.phase,
            "subspaces": {name: str(subspace) for name, subspace in self.partition.items()},
            "embed_dim": self.width,
        }

    def values(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps: every parameter by its name, detached."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @property
    def trainable_count(self) -> int:
        """How many numbers train."""
        raise NotImplementedError

    @classmethod
    def recipe_fields(cls) -> tuple[str, ...]:
        """The arguments that a recipe may set, beside the layers; a kind adds its own."""
        return ("component", "position", "phase", "subspaces")

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """The rules for the kind's own arguments in a checkpoint's JSON."""
        return {}

    @classmethod
    def needed_tensors(cls, spec: Mapping[str, Any], where: str) -> Shapes:
        """The tensors that a checkpoint of an intervention needs.

        Args:
            spec: The arguments, which have passed their rules.
            where: The intervention's name in messages.

        Raises:
            RoadError: where arguments disagree with each other.
        """
        with torch.device("meta"):
            made = cls(**spec)
        return {name: tuple(value.shape) for name, value in made.values().items()}

    def rescale(self, strengths: float | Mapping[str, float]) -> None:
        """Make a strength the new strength 1, in place.

        Args:
            strengths: One for all subspaces, or one by name.

        Raises:
            RoadError: for an unknown name, or a strength at which a value is not defined.
        """
        if not isinstance(strengths, Mapping):
            strengths = dict.fromkeys(self.partition, strengths)
        for name in strengths:  # "all" and labels, which add up in a composition, are none
            check_known("subspace", name, self.partition)
        by_name = dict.fromkeys(self.partition, 1.0) | dict(strengths)
        composition = Composition.parse(by_name, self.partition)
        with torch.no_grad():
            # Units outside all subspaces never act; at strength 1 their values stay.
            unheld = 1 - self.strengths([Composition.parse(ALL, self.partition)])[0]
        self.rescale_units(self.strengths([composition])[0] + unheld)

    @torch.no_grad()
    def rescale_units(self, strengths: Float[Tensor, " units"]) -> None:
        """As `rescale`, with a strength for every unit; at 0 a unit does nothing.

        Args:
            strengths: From 0 to 1, or checked already.
        """
        self._rescale(on_device(strengths, next(self.parameters()).device))

    def _rescale(self, strengths: Float[Tensor, " units"]) -> None:
        """Replace the values of every unit by those at its strength."""
        raise NotImplementedError

    # How it is trained.

    def unit_parameters(self) -> list[nn.Parameter]:
        """Parameters with one entry a unit, so that subspaces may have different learning rates."""
        return []

    def scale_parameters(self) -> list[nn.Parameter]:
        """Parameters that are scales α, which a training may bound; 1 is the identity."""
        return []

    def unmeasured_axes(self) -> Axes | None:
        """The axes that a training has to measure before its first step; None for none."""
        return None

    # What it commutes with, and what is shown of it.

    def why_order_matters(
        self, names: set[str], other: "SubspaceIntervention", other_names: set[str]
    ) -> str | None:
        """Why this edit and another one at the same site do not commute; None where they do.

        Args:
            names: The subspaces of this intervention that act.
            other: An intervention of another checkpoint.
            other_names: The subspaces of the other intervention that act.
        """
        return f"{self.kind} and {other.kind} edits do not commute"

    @property
    def short_name(self) -> str:
        """The intervention's name in a line of text."""
        return self.kind

    def summary(self) -> dict[str, Any]:
        """The intervention in `roadint inspect --json`, as plain JSON."""
        return self.spec()

    def angles_and_scales(
        self, strength: float = 1.0
    ) -> tuple[Float[Tensor, "blocks ..."], Float[Tensor, "blocks ..."]] | None:
        """The angle (radians) and scale of every block, to print and draw; None without blocks.

        Args:
            strength: The strength at which they act.
        """
        return None

    def extra_repr(self) -> str:
        """The arguments that `print` shows."""
        subspaces = dict(self.partition) if self.bound else dict(self._subspaces)
        listed = ", ".join(f"{name}={subspace}" for name, subspace in subspaces.items())
        return f"layer={self.layer}, component={self.component}, position={self.position}, {listed}"

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


@contextmanager
def full_precision(h: Tensor) -> Iterator[None]:
    """A context for edits: their products are those of their numbers, also under autocast."""
    if not torch.is_autocast_enabled(h.device.type):
        yield
        return
    with torch.autocast(h.device.type, enabled=False):
        yield


def subspace_names(interventions: Iterable[SubspaceIntervention]) -> list[str]:
    """The names of all subspaces of interventions, in order, without repetitions."""
    return list(
        dict.fromkeys(name for intervention in interventions for name in intervention.partition)
    )
