"""RoadIntervention: RoAd on a hidden state, as a pyvene intervention (paper section 4.3).

It holds θ and α of one site and turns the strengths of a row's composition into a Rotation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from roadint.errors import check_known
from roadint.files.rules import Rule, Shapes, one_of
from roadint.grammar.position import Phase, Position
from roadint.grammar.subspace import Partition, SubspaceLike
from roadint.interventions.arguments import PAIRING_RULE, VARIANT_RULE
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.paired import PairedIntervention
from roadint.interventions.pyvene.entry import EditIntervention
from roadint.interventions.registry import register
from roadint.rotation.basis import BasisKind, Frame, rotate
from roadint.rotation.rotation import (
    Pairing,
    Rotation,
    Variant,
    canonical,
    check_scale,
    check_variant,
    group_size,
    parameter_shape,
    positive,
    rotation,
)

Form = Literal["rotation", "interchange"]


@register("road")
class RoadIntervention(PairedIntervention, EditIntervention):
    """`Φ(h) = R h` on the output of one component, each row through its own subspaces.

    Args:
        layer: The layer, from 0; 0 by default. A pyvene configuration may set layer and component
            instead.
        component: "block_output" (the default), "attention_output" or "mlp_output".
        position: The tokens that are edited; see `roadint.grammar.position.Position`. In pyvene,
            `unit_locations` count instead.
        phase: "prompt", "generated" or "both".
        variant: "road_1", "road_2" or "road_4".
        subspace: A single subspace, which is named "road"; the whole width by default.
        subspaces: Named subspaces in place of a single one, {"german": "[0, d/2)", …}.
        embed_dim: The width of the hidden states. Without it, parameters have no shape until a
            model sets the width; the objects stay the same, so an optimizer may be made before.
        pairing: "adjacent" (the paper's), "half" or a group size.
        basis: The orthogonal basis in which pairs are formed; see `roadint.rotation.basis.Basis`.
        basis_seed: The seed of a random basis.
        form: "rotation", `R h`; or "interchange", the paper's `h + R (h − Rᵀ h)`, which is the same
            while α = 1 and otherwise, for RoAd1, `R h + (1 − α²) h`.
        subspace_partition: pyvene's form of subspaces.
        max_number_of_units: The number of positions by which pyvene multiplies `embed_dim`.
        **kwargs: Further fields of pyvene's configuration, which are ignored.

    Attributes:
        theta: Angles in radians, float32 of shape (blocks,), (blocks, 2) or (blocks, 2, 2), for
            RoAd1, 2 and 4; 0, the identity, at the start. Float32 whatever the model's dtype.
        alpha: Scales, of the same shape; 1 at the start. Blocks outside all subspaces do not train.

    Raises:
        RoadError: where an argument does not fit.

    Examples:
        >>> halves = {"german": "[0, d/2)", "english": "[d/2, d)"}
        >>> RoadIntervention(layer=9, subspaces=halves, embed_dim=640).trainable_count
        640
    """

    turns = True

    theta: nn.Parameter
    alpha: nn.Parameter

    def __init__(
        self,
        *,
        layer: int | None = None,
        component: str | None = None,
        position: str | Position = "last",
        phase: Phase = "prompt",
        variant: Variant = "road_1",
        subspace: SubspaceLike = None,
        subspaces: Mapping[str, SubspaceLike] | None = None,
        embed_dim: int | Tensor | None = None,
        pairing: Pairing = "adjacent",
        basis: BasisKind = "identity",
        basis_seed: int = 0,
        form: Form = "rotation",
        subspace_partition: Sequence[SubspaceLike] | None = None,
        max_number_of_units: int = 1,
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
        self.variant, self.pairing = check_variant(variant), pairing
        check_known("form", form, get_args(Form))
        self.form = form
        self._bind_first()

    def _parameter_names(self) -> Sequence[str]:
        return ("theta", "alpha")

    def _build(self, width: int) -> Partition:
        self.group = group_size(self.pairing, width)
        partition = Partition(self._subspaces, width)
        shape = parameter_shape(self.variant, width // 2)
        self.theta = nn.Parameter(torch.zeros(shape, dtype=torch.float32))
        self.alpha = nn.Parameter(torch.ones(shape, dtype=torch.float32))
        self.frame = self.basis.frame(width)
        return partition

    @property
    def trainable_count(self) -> int:
        """How many numbers train: those of the blocks that some subspace holds."""
        self._check_bound()
        return 2 * self.partition.covered() * self.theta[0].numel()

    def spec(self) -> dict[str, Any]:
        """As in the base class, and variant, pairing and form."""
        rotation = {"variant": self.variant, "pairing": self.pairing, "form": self.form}
        return {**super().spec(), **rotation}

    @classmethod
    def recipe_fields(cls) -> tuple[str, ...]:
        """As in the base class, and variant, pairing and basis."""
        return (*super().recipe_fields(), "variant", "pairing", "basis", "basis_seed")

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """As in the base class, and the rules for variant, pairing and form."""
        form = one_of(*get_args(Form))
        return {**super().rules(), "variant": VARIANT_RULE, "pairing": PAIRING_RULE, "form": form}

    @classmethod
    def needed_tensors(cls, spec: Mapping[str, Any], where: str) -> Shapes:
        """θ, α and the axes of a measured basis."""
        shape = parameter_shape(spec.get("variant", "road_1"), spec["embed_dim"] // 2)
        return {"theta": shape, "alpha": shape, **super().needed_tensors(spec, where)}

    def unit_parameters(self) -> list[nn.Parameter]:
        """θ and α."""
        return [self.theta, self.alpha]

    def scale_parameters(self) -> list[nn.Parameter]:
        """α."""
        return [self.alpha]

    def why_order_matters(
        self, names: set[str], other: SubspaceIntervention, other_names: set[str]
    ) -> str | None:
        """Rotations commute on disjoint blocks, and RoAd1, complex numbers, on shared ones."""
        if not isinstance(other, RoadIntervention):
            return super().why_order_matters(names, other, other_names)
        if (self.group, self.basis) != (other.group, other.basis) or self.basis.kind == "pca":
            return f"they form pairs in different bases ({self.basis.kind} and {other.basis.kind})"
        shared = self._blocks_of(names) & other._blocks_of(other_names)
        if shared and not (self._is_complex and other._is_complex):
            variants = f"{self.variant} and {other.variant}"
            return f"{variants} share {len(shared)} blocks and do not commute"
        return None

    def _blocks_of(self, names: set[str]) -> set[int]:
        return {block for name in names for block in self.partition[name].blocks}

    @property
    def _is_complex(self) -> bool:
        """Whether each block is a complex number, `α e^{iθ}`."""
        return self.variant == "road_1" and self.form == "rotation"

    @property
    def short_name(self) -> str:
        """The variant."""
        return self.variant

    def angles_and_scales(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """θ in [−π, π) and α ≥ 0 of every block, shaped as the parameters, on the CPU."""
        theta, alpha = positive(self.theta.detach().cpu(), self.alpha.detach().cpu())
        return canonical(theta * strength, alpha**strength)

    def _check_strengths(self, strengths: Float[Tensor, "rows blocks"]) -> None:
        unusual = ~((strengths >= 0) & (strengths <= 1)).all(dim=1)
        if bool(unusual.any()):
            check_scale(self.alpha, strengths[unusual], self._owner)

    def _owner(self, block: int) -> str:
        owners = [
            repr(name) for name, subspace in self.partition.items() if block in subspace.blocks
        ]
        return f"{''.join(owners) or 'no subspace'} at layer {self.layer}"

    def rotation(
        self,
        strengths: Float[Tensor, "*rows blocks"] | float = 1.0,
        learning: Bool[Tensor, "rows blocks"] | None = None,
    ) -> Rotation:
        """The Rotation at these strengths; see `roadint.rotation.rotation.rotation`.

        Args:
            strengths: One number, or one a block, with leading dimensions for the rows.
            learning: True for the blocks that get a row's gradient; all of them by default.

        Raises:
            RoadError: before the width is known.
        """
        self._check_bound()
        theta: Tensor = self.theta
        alpha: Tensor = self.alpha
        if learning is not None:
            learning = learning.reshape(*learning.shape, *(1,) * (theta.ndim - 1))
            theta = torch.where(learning, theta, theta.detach())
            alpha = torch.where(learning, alpha, alpha.detach())
        made = rotation(theta, alpha, strengths, variant=self.variant, group=self.group)
        return made if self.form == "rotation" else made.as_interchange()

    def rows(
        self,
        strengths: Float[Tensor, "rows blocks"],
        learning: Bool[Tensor, "rows blocks"] | None = None,
    ) -> Rotation:
        """The Rotation of every row of a batch, as `rotation`.

        Raises:
            RoadError: where a row that acts is not finite.
        """
        made = self.rotation(strengths, learning)
        if self._may_wait:
            # All blocks of an acting row: at strength 0, too, a block is NaN where its θ is.
            acting = (strengths != 0).any(dim=-1, keepdim=True)
            parts = [part.where(acting, 0) for part in (made.u, made.v) if part is not None]
            self._check_finite(strengths, *parts)
        return made

    def edit(
        self,
        h: Float[Tensor, "*rows width"],
        rows: Rotation,
        source: Float[Tensor, "*rows width"] | None = None,
    ) -> Float[Tensor, "*rows width"]:
        """The rotated hidden states, in the dtype of `h`; pairs are formed in the basis."""
        return rotate(h, rows, self.frame)

    def as_turn(self, rows: Rotation) -> tuple[Rotation, Frame | None]:
        """The rotation itself, in the basis."""
        return rows, self.frame

    def _rescale(self, strengths: Float[Tensor, " blocks"]) -> None:
        strengths = strengths.reshape(-1, *(1,) * (self.theta.ndim - 1))
        theta, alpha = positive(self.theta, self.alpha)
        self.theta.copy_(theta * strengths)
        self.alpha.copy_(alpha**strengths)

    def extra_repr(self) -> str:
        """The arguments that `print` shows."""
        return f"{super().extra_repr()}, variant={self.variant}"
