"""RoadInterchange: a distributed interchange intervention in O(d) (DAS, arXiv 2303.02536).

`b + R_Sᵀ (R_S s − R_S b)` replaces the part of the base's hidden state b that lies in the matrix
rows S of a rotation R by that of a source's hidden state s. R is orthogonal (α = 1) without a
matrix and without an orthogonal parametrisation to update at every step. One rotation turns pairs
of neighbouring dims. A product of log2(d) rotations, at strides 1, 2, 4, … like the butterflies of
a fast Fourier transform, mixes every dim with every other, in O(d log d).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from roadint.architecture.devices import on_device
from roadint.errors import RoadError, check_known, listing, quoted
from roadint.files.rules import Rule, Shapes, listed, number, one_of, whole
from roadint.grammar.position import Phase, Position
from roadint.grammar.subspace import Partition, Subspace, SubspaceLike
from roadint.interventions.arguments import WIDEST
from roadint.interventions.paired import PairedIntervention
from roadint.interventions.registry import register
from roadint.rotation.basis import BasisKind
from roadint.rotation.rotation import Rotation, group_size, rotation

RowsOfBlock = Literal["first", "second", "both", "explicit"]
Selection = Literal["mask", "boundary"]


@dataclass(frozen=True)
class Projection:
    """`P u = Rᵀ (w ⊙ R u)`, with weights w for every row of a batch.

    Attributes:
        stages: The rotations whose product R is, in the order in which they act.
        weights: The weights w.
    """

    stages: tuple[Rotation, ...]
    weights: Float[Tensor, "*rows width"]

    def row(self, index: Int[Tensor, "..."]) -> "Projection":
        """The projection of the rows `index`."""
        return Projection(self.stages, self.weights[index])

    def __call__(self, difference: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Apply P."""
        for stage in self.stages:
            difference = stage(difference)
        difference = self.weights * difference
        for stage in reversed(self.stages):
            inverse = Rotation(stage.u.conj(), None, stage.group)  # α = 1
            difference = inverse(difference)
        return difference


_MOST_STAGES = 1000


@register("interchange")
class RoadInterchange(PairedIntervention):
    """`b + R_Sᵀ(R_S s − R_S b)` on the output of one component; a row's subspaces choose S.

    A strength multiplies what is exchanged; 1 is the whole interchange.

    Args:
        layer: The layer, from 0.
        component: "block_output" (the default), "attention_output" or "mlp_output".
        position: The tokens that are edited; see `roadint.grammar.position.Position`.
        phase: "prompt", "generated" or "both".
        subspace: A single subspace, which is named "road"; all blocks by default.
        subspaces: Named subspaces in place of a single one, {"left": "[0, d/2)", …}.
        stages: The number of rotations whose product R is. In stage i, dims 2^i apart are paired
            (from 1 again where the width is no longer divisible). log2(d) stages let every dim meet
            every other where the width d is a power of two; else dims meet within groups of its
            largest power of two, unless a random basis mixes them. 1 stage turns neighbours alone.
        rows: The matrix rows of R that a subspace takes of its blocks: "first", "second" or "both",
            or a mapping of names to these. With "both" and one stage, a block's rotation cancels
            and the raw pair is exchanged; so the default is "first" for one stage, and "both" for
            more. With "explicit", subspaces (or pyvene's subspace_partition) are sets of matrix
            rows of R, with any boundaries. Matrix row i gives coordinate i of R h.
        learn: None, "mask" (a gate for every matrix row that a subspace holds) or "boundary" (the
            share of a subspace's matrix rows, from the first, that is taken: Boundless DAS). Gates
            are soft in training, at `temperature`, which the user lowers, and 0 or 1 in eval().
        embed_dim: The width of the hidden states; None where a model sets it later.
        basis: The orthogonal basis in which pairs are formed; see `roadint.rotation.basis.Basis`.
        basis_seed: The seed of a random basis.
        subspace_partition: pyvene's form of subspaces, as sets of matrix rows of R.
        max_number_of_units: The number of positions by which pyvene multiplies `embed_dim`.
        source_representation: A constant source, for calls without one, as in pyvene.
        **kwargs: Further fields of pyvene's configuration, which are ignored.

    Attributes:
        theta: Angles in radians, float32 (stages, blocks). One stage starts at 0, more start at
            random, which learns faster (seeded by torch.manual_seed).
        mask: Logits, float32 (width,), of `learn="mask"`.
        boundary: Shares, float32 (subspaces,), of `learn="boundary"`.

    Raises:
        RoadError: where an argument does not fit.
    """

    takes_source = True
    theta: nn.Parameter

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
        source_representation: Float[Tensor, " width"] | Sequence[float] | None = None,
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
            basis=basis,
            basis_seed=basis_seed,
            subspace_partition=subspace_partition,
            max_number_of_units=max_number_of_units,
            **kwargs,
        )
        is_count = isinstance(stages, int) and not isinstance(stages, bool)
        if not is_count or not 1 <= stages <= _MOST_STAGES:
            raise RoadError(
                f"stages={quoted(stages)}: expected a count of at least 1, "
                f"such as log2 of the width, and at most {_MOST_STAGES}"
            )
        self.stages = stages
        self._default_rows: RowsOfBlock = "first" if stages == 1 else "both"
        if subspace_partition is not None:
            rows = "explicit"
        self.rows_of_block = self._rows_by_name(self._default_rows if rows is None else rows)
        if learn is not None:
            check_known("learn", learn, get_args(Selection))
        self.learn, self.temperature = learn, 1.0
        del self.source_representation  # pyvene's attribute, None, hides a buffer of that name
        self.set_source_representation(source_representation)
        self._bind_first()

    def _rows_by_name(
        self, rows: RowsOfBlock | Mapping[str, RowsOfBlock]
    ) -> Mapping[str, RowsOfBlock]:
        by_name = rows if isinstance(rows, Mapping) else dict.fromkeys(self._subspaces, rows)
        for name, chosen in by_name.items():
            check_known("rows", chosen, get_args(RowsOfBlock))
            if name not in self._subspaces:
                raise RoadError(
                    f"rows names {quoted(name)}: expected one of {listing(self._subspaces)}"
                )
        return by_name

    def set_source_representation(
        self, source_representation: Float[Tensor, " width"] | Sequence[float] | None
    ) -> None:
        """Set the constant source; with None, every call has its own.

        Raises:
            RoadError: where it is no hidden state, or has another width.
        """
        constant = None if source_representation is None else _states(source_representation)
        self.register_buffer("source_representation", constant)
        self.is_source_constant = constant is not None  # then pyvene asks for no source
        if self.bound:
            self._check_source_width(self.width)

    def _take_source(self, source: Any) -> None:
        if source is None:
            return
        own = self.source_representation
        if own is not None and not torch.equal(_states(source).to(own.device), own):
            raise RoadError(
                "source_representation is said by the configuration and by its RoadInterchange: "
                "expected it said once"
            )
        self.set_source_representation(source)

    def _parameter_names(self) -> Sequence[str]:
        return ("theta",) if self.learn is None else ("theta", self.learn)

    def _build(self, width: int) -> Partition:
        group_size("adjacent", width)  # refuses an odd one
        self._check_source_width(width)
        taken = {
            name: _rows_of(spec, width, self.rows_of_block.get(name, self._default_rows))
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
                f"a source_representation of width {constant.shape[-1]}: "
                f"expected {width}, the model's"
            )

    @property
    def trainable_count(self) -> int:
        """How many numbers train: angles, and gates or boundaries.

        With one stage, only angles of blocks in subspaces train.
        """
        self._check_bound()
        held = self._held()
        gates = {None: 0, "mask": len(held), "boundary": len(self.partition)}[self.learn]
        return (len({row // 2 for row in held}) if self.stages == 1 else self.theta.numel()) + gates

    def spec(self) -> dict[str, Any]:
        """As in the base class, and stages, matrix rows and gates."""
        spec = {**super().spec(), "stages": self.stages, "rows": "explicit", "learn": self.learn}
        if self.source_representation is not None:
            spec["source_representation"] = self.source_representation.tolist()
        return spec

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """As in the base class, and the rules for stages, matrix rows and gates."""
        return {
            **super().rules(),
            "stages": whole(1, WIDEST),
            "rows": one_of(*get_args(RowsOfBlock)),
            "learn": one_of(None, *get_args(Selection)),
            "source_representation": listed(number(-3e38, 3e38), WIDEST),
        }

    @classmethod
    def needed_tensors(cls, spec: Mapping[str, Any], where: str) -> Shapes:
        """θ, gates or boundaries, and the axes of a measured basis."""
        width = spec["embed_dim"]
        if len(spec.get("source_representation", [0.0] * width)) != width:
            raise RoadError(
                f"{where} has a source of {len(spec['source_representation'])} numbers: "
                f"expected its width, {width}"
            )
        learned: dict[str | None, Shapes] = {
            "mask": {"mask": (width,)},
            "boundary": {"boundary": (len(spec["subspaces"]),)},
        }
        return {
            "theta": (spec.get("stages", 1), width // 2),
            **learned.get(spec.get("learn"), {}),
            **super().needed_tensors(spec, where),
        }

    def gates(self) -> Float[Tensor, " width"]:
        """How much of every matrix row of R is exchanged by a subspace that holds it, from 0 to 1.

        All gates are 1 where `learn` is None.
        """
        logits = self._logits()
        return torch.sigmoid(logits) if self.training else (logits > 0).float()

    def _logits(self) -> Float[Tensor, " width"]:
        """The logits of the gates, at the temperature; infinite where `learn` is None."""
        self._check_bound()
        if self.learn == "mask":
            return self.mask / self.temperature
        logits = self.theta.new_full((self.width,), math.inf)
        if self.learn is None:
            return logits
        for boundary, subspace in zip(self.boundary, self.partition.values(), strict=True):
            held = on_device(subspace.blocks, logits.device)
            # pyvene's form: soft within `temperature` rows of the boundary
            ranks = torch.arange(len(held), device=logits.device)
            distances = boundary.clamp(0, 1) * len(held) - ranks - 0.5
            logits = logits.index_put((held,), distances / self.temperature)
        return logits

    def sparsity(self) -> Float[Tensor, ""]:
        """The mean gate of the matrix rows in subspaces, to add to a loss."""
        return self.gates()[on_device(self._held(), self.theta.device)].mean()

    def _held(self) -> list[int]:
        """The matrix rows of R in subspaces."""
        return [row for subspace in self.partition.values() for row in subspace.blocks]

    def taken(self) -> dict[str, Subspace | None]:
        """The matrix rows of R that subspaces exchange when gates are 0 or 1; None for none."""
        opened = (self._logits() > 0).tolist()
        left = {
            name: [row for row in subspace.blocks if opened[row]]
            for name, subspace in self.partition.items()
        }
        return {
            name: Subspace.from_dims(rows, self.width, 1) if rows else None
            for name, rows in left.items()
        }

    def rows(
        self,
        strengths: Float[Tensor, "rows width"],
        learning: Bool[Tensor, "rows width"] | None = None,
    ) -> Projection:
        """The Projection of every row of a batch.

        Raises:
            RoadError: for `learning`, since all rows share R, and for values that are not finite.
        """
        if learning is not None:
            raise RoadError(
                "an interchange is trained on counterfactual outputs (RoadModel.interchange), "
                "not by RoadTrainer"
            )
        if self._may_wait:
            self._check_finite(strengths, *self.parameters())
        one = torch.ones_like(self.theta[0])
        depth = (self.width & -self.width).bit_length() - 1  # how often the width is divisible by 2
        stages = [
            rotation(theta, one, variant="road_1", group=2 ** (stage % depth + 1))
            for stage, theta in enumerate(self.theta)
        ]
        return Projection(tuple(stages), strengths * self.gates())

    def edit(
        self,
        h: Float[Tensor, "*rows width"],
        rows: Projection,
        source: Float[Tensor, "*rows width"] | None = None,
    ) -> Float[Tensor, "*rows width"]:
        """`h + P (source − h)`, in the dtype of `h`.

        Raises:
            RoadError: where there is no source.
        """
        if source is None:
            source = self.source_representation
        if source is None:
            raise RoadError(
                f"the interchange at layer {self.layer} needs a source: "
                "give one, or compose without it"
            )
        difference = source.to(self.theta.dtype) - h
        if self.frame is None:
            return (h + rows(difference)).to(h.dtype)
        return (h + self.frame.out(rows(self.frame.into(difference)))).to(h.dtype)

    def _rescale(self, strengths: Tensor) -> None:
        raise RoadError(
            "an interchange has no strength to settle: "
            "give it in the composition, such as '0.5*road'"
        )


def _states(source: Any) -> Float[Tensor, " width"]:
    """A constant source as float32."""
    try:
        states = torch.as_tensor(source, dtype=torch.float32)
    except Exception:  # of all kinds, by what was given
        raise RoadError(
            f"source_representation {quoted(source)}: expected hidden states, [width]"
        ) from None
    if not states.ndim or states.numel() != states.shape[-1]:
        shape = tuple(states.shape)
        raise RoadError(
            f"source_representation of shape {shape}: expected one hidden state, [width]"
        )
    return states.flatten()


def _rows_of(spec: SubspaceLike, width: int, rows: RowsOfBlock) -> Subspace:
    """The matrix rows of R that a subspace takes."""
    if rows == "explicit":
        return Subspace.parse(spec, width, unit=1)
    blocks = Subspace.parse(spec, width).blocks
    first, second = [2 * block for block in blocks], [2 * block + 1 for block in blocks]
    return Subspace.from_dims(
        {"first": first, "second": second, "both": first + second}[rows], width, unit=1
    )
