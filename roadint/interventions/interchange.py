"""RoadInterchange: the distributed interchange intervention in RoAd's basis, with a source (DAS, arXiv 2303.02536, in O(d)).

`b + R_Sᵀ (R_S s − R_S b)` puts the part of a source's hidden state s that lies in the rows S of a rotation R in the place of the
base's own. R is orthogonal (α = 1): no matrix, and no orthogonal parametrisation to keep up at each step. One rotation turns each
pair of neighbouring dimensions; a product of log2(d) of them, at strides 1, 2, 4, … as the butterflies of a fast Fourier
transform, lets every dimension meet every other, in O(d log d).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from roadint.errors import RoadError, check_known, listing, quoted
from roadint.grammar.position import Phase, Position
from roadint.grammar.subspace import Partition, Subspace, SubspaceLike
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.registry import register
from roadint.rotation.basis import Basis, BasisKind, Frame, fit
from roadint.rotation.rotation import Rotation, group_size, rotation

RowsOfBlock = Literal["first", "second", "both", "explicit"]
Selection = Literal["mask", "boundary"]


@dataclass(frozen=True)
class Projection:
    """`P u = Rᵀ (w ⊙ R u)`: R the product of `stages`, the first acting first; weights w of its rows, [..., width]."""

    stages: tuple[Rotation, ...]
    weights: Tensor

    def row(self, index: Tensor) -> "Projection":
        """Those of the rows `index`."""
        return Projection(self.stages, self.weights[index])

    def __call__(self, difference: Tensor) -> Tensor:
        """P of `difference`, [..., width] float32."""
        for stage in self.stages:
            difference = stage(difference)
        difference = self.weights * difference
        for stage in reversed(self.stages):
            difference = Rotation(stage.u.conj(), None, stage.group)(
                difference
            )  # the inverse: α = 1
        return difference


_MOST_STAGES = 1000


@register("interchange")
class RoadInterchange(SubspaceIntervention):
    """`b + R_Sᵀ(R_S s − R_S b)` on the output of one component, S by each row's own subspaces.

    layer, component, position, phase, basis, basis_seed, embed_dim: as in RoadIntervention.
    stages: of how many rotations R is the product. In stage i, dims 2^i apart are paired (from 1 again where the width is no longer
    divisible). log2(d) stages come close to any rotation; 1 turns pairs of neighbours alone.
    subspaces: named subspaces of blocks, {"left": "[0, d/2)", …}; or subspace: a single one, named "road"; or neither: all blocks.
    rows: which rows of R a subspace takes in each of its blocks, "first", "second" or "both", or a mapping of names to these. With
    both and one stage, a block's rotation cancels and its raw pair is swapped: θ matters where one row is taken. So the default is
    "first" for one stage, "both" for more. "explicit": the subspaces, or pyvene's subspace_partition, are themselves sets of rows
    of R, boundaries anywhere. Row i is coordinate i of R h.
    learn: None, "mask" (a gate for each row that a subspace holds) or "boundary" (the share of a subspace's rows, from its first,
    that is taken: Boundless DAS). Gates are soft while training, at `temperature`, which the user lowers; 0 or 1 in eval().
    source_representation: hidden states [width] that are the source wherever none is given, as pyvene's constant sources.

    theta (stages, blocks), radians, and mask (width,), logits, or boundary (subspaces,), shares, are float32 parameters. θ starts
    at 0 for one stage, for more at random angles, which learn faster (torch.manual_seed makes them again). A strength multiplies
    what is exchanged; 1 is the whole interchange. Raises RoadError where an argument does not fit.
    """

    takes_source = True
    theta: nn.Parameter
    source_representation: Tensor | None

    def __init__(
        self,
        *,
        layer: int | None = None,
        component: str | None = None,
        position: str | Position = "last",
        phase: Phase = "prompt",
        subspace: SubspaceLike = None,
        subspaces: Mapping[str, SubspaceLike] | None = None,
        stages: int = 1,
        rows: RowsOfBlock | Mapping[str, RowsOfBlock] | None = None,
        learn: Selection | None = None,
        embed_dim: int | Tensor | None = None,
        basis: BasisKind = "identity",
        basis_seed: int = 0,
        subspace_partition: Sequence[SubspaceLike] | None = None,
        max_number_of_units: int = 1,
        source_representation: Tensor | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            layer=layer,
            component=component,
            position=position,
            phase=phase,
            subspace=subspace,
            subspaces=subspaces,
            embed_dim=embed_dim,
            subspace_partition=subspace_partition,
            max_number_of_units=max_number_of_units,
            **kwargs,
        )
        if (
            not isinstance(stages, int)
            or isinstance(stages, bool)
            or not 1 <= stages <= _MOST_STAGES
        ):
            raise RoadError(
                f"stages={quoted(stages)}: expected a count of at least 1, such as log2 of the width, and at most {_MOST_STAGES}"
            )
        self.stages = stages
        self._default: RowsOfBlock = "first" if stages == 1 else "both"
        chosen = (
            "explicit"
            if subspace_partition is not None
            else self._default
            if rows is None
            else rows
        )
        self.rows_of_block = (
            chosen if isinstance(chosen, Mapping) else dict.fromkeys(self._subspaces, chosen)
        )
        for name, each in self.rows_of_block.items():
            check_known("rows", each, get_args(RowsOfBlock))
            if name not in self._subspaces:
                raise RoadError(
                    f"rows names {quoted(name)}: expected one of {listing(self._subspaces)}"
                )
        if learn is not None:
            check_known("learn", learn, get_args(Selection))
        self.learn, self.temperature = learn, 1.0
        self.basis = Basis(basis, basis_seed)
        self.frame: Frame | None = None
        del self.source_representation  # pyvene's None is in the way of a buffer
        self.set_source_representation(source_representation)
        self._bind_as_told()

    def set_source_representation(
        self, source_representation: Tensor | Sequence[float] | None
    ) -> None:
        """Change the constant source, [width]; None for sources that each call gives."""
        constant = None if source_representation is None else _states(source_representation)
        self.register_buffer("source_representation", constant)
        self.is_source_constant = constant is not None  # pyvene asks for no other then
        if self.bound:
            self._check_source_width(self.width)

    def _take_source(self, source: Any) -> None:
        if source is None:
            return
        own = self.source_representation
        if own is not None and not torch.equal(_states(source).to(own.device), own):
            raise RoadError(
                "source_representation is said by the configuration and by its RoadInterchange: expected it said once"
            )
        self.set_source_representation(source)

    def _parameter_names(self) -> Sequence[str]:
        return ("theta",) if self.learn is None else ("theta", self.learn)

    def _build(self, width: int) -> Partition:
        group_size("adjacent", width)  # refuses an odd one
        self._check_source_width(width)
        taken = {
            name: _rows_of(spec, width, self.rows_of_block.get(name, self._default))
            for name, spec in self._subspaces.items()
        }
        partition = Partition(taken, width, unit=1)
        self.theta = nn.Parameter(torch.zeros(self.stages, width // 2, dtype=torch.float32))
        if self.stages > 1:
            nn.init.uniform_(self.theta, -math.pi, math.pi)
        if self.learn == "mask":
            self.mask = nn.Parameter(torch.zeros(width, dtype=torch.float32))
        elif self.learn == "boundary":
            self.boundary = nn.Parameter(torch.full((len(partition),), 0.5, dtype=torch.float32))
        self.frame = self.basis.frame(width)
        return partition

    def _check_source_width(self, width: int) -> None:
        constant = self.source_representation
        if constant is not None and constant.shape[-1] != width:
            raise RoadError(
                f"a source_representation of width {constant.shape[-1]}: expected {width}, the model's"
            )

    @property
    def trainable_count(self) -> int:
        """How many numbers train: the angles (with one stage, of the blocks that some subspace holds) and gates or boundaries."""
        self._check_bound()
        held = self._held()
        gates = {None: 0, "mask": len(held), "boundary": len(self.partition)}[self.learn]
        return (len({row // 2 for row in held}) if self.stages == 1 else self.theta.numel()) + gates

    def spec(self) -> dict[str, Any]:
        """The arguments that make this intervention again, without its values, as plain JSON values."""
        own = {"stages": self.stages, "rows": "explicit", "learn": self.learn}
        if self.source_representation is not None:
            own["source_representation"] = self.source_representation.tolist()
        return {**super().spec(), **own, "basis": self.basis.kind, "basis_seed": self.basis.seed}

    def fit_basis(self, hidden: Tensor | Sequence[Tensor]) -> None:
        """Measure the axes of `basis="pca"` on hidden states, [tokens, width] or a list of such: a site's of `RoadModel.collect`.

        roadint.train does so by itself, once, before the first step. Raises RoadError for another basis and for another width.
        """
        self._check_bound()
        fit(self.frame, hidden)

    def values(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: θ, the gates or boundaries and, where it is measured, the basis."""
        return {**super().values(), **self.basis.measured(self.frame)}

    def gates(self) -> Tensor:
        """[width] in 0 … 1: how much of each row of R is exchanged by a subspace that holds it; 1 where nothing is learned."""
        self._check_bound()
        if self.learn is None:
            return torch.ones(self.width, device=self.theta.device)
        if self.learn == "mask":
            logits = self.mask / self.temperature
            return torch.sigmoid(logits) if self.training else (logits > 0).float()
        gates = torch.ones(self.width, device=self.theta.device)
        for boundary, subspace in zip(self.boundary, self.partition.values(), strict=True):
            held = torch.tensor(subspace.blocks, device=gates.device)
            # pyvene's form: soft within `temperature` rows of the boundary
            logits = (
                boundary.clamp(0, 1) * len(held)
                - torch.arange(len(held), device=gates.device)
                - 0.5
            ) / self.temperature
            gates = gates.index_put(
                (held,), torch.sigmoid(logits) if self.training else (logits > 0).float()
            )
        return gates

    def sparsity(self) -> Tensor:
        """The mean gate of the rows that some subspace holds, 0 … 1, to add to a loss where fewer are wanted."""
        return self.gates()[torch.tensor(self._held(), device=self.theta.device)].mean()

    def _held(self) -> list[int]:
        """The rows of R that some subspace holds."""
        return [row for subspace in self.partition.values() for row in subspace.blocks]

    def taken(self) -> dict[str, Subspace | None]:
        """The rows of R that each subspace exchanges when its gates are 0 or 1; None where there are none left."""
        was = self.training
        gates = self.eval().gates()
        self.train(was)
        left = {
            name: [row for row in subspace.blocks if bool(gates[row])]
            for name, subspace in self.partition.items()
        }
        return {
            name: Subspace.from_dims(rows, self.width, 1) if rows else None
            for name, rows in left.items()
        }

    def rows(self, strengths: Tensor, learning: Tensor | None = None) -> Projection:
        """The Projection of each row of a batch. strengths: [rows, width]. Raises RoadError for `learning`: R is all rows' own."""
        if learning is not None:
            raise RoadError(
                "an interchange is trained on counterfactual outputs (RoadModel.interchange), not by RoadTrainer"
            )
        if self._may_wait:
            self._check_finite(strengths, *self.parameters())
        one = torch.ones_like(self.theta[0])
        depth = (self.width & -self.width).bit_length() - 1  # how often 2 divides the width
        stages = [
            rotation(theta, one, variant="road_1", group=2 ** (stage % depth + 1))
            for stage, theta in enumerate(self.theta)
        ]
        return Projection(tuple(stages), strengths * self.gates())

    def edit(self, h: Tensor, rows: Projection, source: Tensor | None = None) -> Tensor:
        """`h + P (source − h)`; h, source: [..., width]. Same dtype out. Raises RoadError where there is no source."""
        if source is None:
            source = self.source_representation
        if source is None:
            raise RoadError(
                f"the interchange at layer {self.layer} needs a source: give one, or compose without it"
            )
        difference = source.to(self.theta.dtype) - h
        if self.frame is None:
            return (h + rows(difference)).to(h.dtype)
        return (h + self.frame.out(rows(self.frame.into(difference)))).to(h.dtype)

    def _rescale(self, strengths: Tensor) -> None:
        raise RoadError(
            "an interchange has no strength to settle: give it in the composition, such as '0.5*road'"
        )


def _states(source: Any) -> Tensor:
    """A constant source as float32. Raises RoadError where it is none."""
    try:
        states = torch.as_tensor(source, dtype=torch.float32)
    except Exception:  # of all kinds, by what was given
        raise RoadError(
            f"source_representation {quoted(source)}: expected hidden states, [width]"
        ) from None
    if not states.ndim:
        raise RoadError(f"source_representation {quoted(source)}: expected hidden states, [width]")
    return states


def _rows_of(spec: SubspaceLike, width: int, rows: RowsOfBlock) -> Subspace:
    """The rows of R that a subspace takes."""
    if rows == "explicit":
        return Subspace.parse(spec, width, unit=1)
    blocks = Subspace.parse(spec, width).blocks
    first, second = [2 * block for block in blocks], [2 * block + 1 for block in blocks]
    return Subspace.from_dims(
        {"first": first, "second": second, "both": first + second}[rows], width, unit=1
    )
