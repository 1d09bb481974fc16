"""RoadIntervention: RoAd on a hidden state, as a pyvene intervention (paper section 4.3).

It holds θ and α of one site and turns the strengths of a row's composition into a Rotation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from roadint.errors import check_known
from roadint.grammar.position import Phase, Position
from roadint.grammar.subspace import Partition, SubspaceLike
from roadint.interventions.base import EditIntervention
from roadint.interventions.registry import register
from roadint.rotation.basis import Basis, BasisKind, Frame, fit, rotate
from roadint.rotation.rotation import (
    Pairing,
    Rotation,
    Variant,
    canonical,
    check_scale,
    check_variant,
    group_size,
    parameter_shape,
    rotation,
)

Form = Literal["rotation", "interchange"]


@register("road")
class RoadIntervention(EditIntervention):
    """`Φ(h) = R h` on the output of one component, each row through its own subspaces.

    layer: the layer, from 0. component: "block_output" (the default), "attention_output" or "mlp_output". A pyvene configuration
    may say them in its place; where nobody says the layer, it is 0.
    position, phase: which tokens; see roadint.grammar.position.Position. pyvene's own `unit_locations` say it there.
    variant: "road_1", "road_2" or "road_4". pairing: "adjacent" (the paper's), "half" or a group size.
    subspaces: named subspaces, {"german": "[0, d/2)", …}; or subspace: a single one, named "road"; or neither: the whole width.
    form: "rotation", `R h`; or "interchange", the paper's `h + R (h − Rᵀ h)`: the same only while α = 1, else, for RoAd1,
    `R h + (1 − α²) h`.
    basis, basis_seed: the fixed orthogonal basis in which pairs are formed; see roadint.rotation.basis.Basis.
    embed_dim: the width of the hidden state. Without it the parameters wait, without a shape, until a model tells the width; they
    stay the same objects then, so that an optimizer may be made before.

    theta (radians) and alpha are float32 parameters of shape (blocks,), (blocks, 2) or (blocks, 2, 2), for RoAd1, 2 and 4; they
    start at 0 and 1 (the identity) and stay float32 whatever the model's dtype. Blocks outside all subspaces never move.
    Raises RoadError where an argument does not fit.
    """

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
            subspace_partition=subspace_partition,
            max_number_of_units=max_number_of_units,
            **kwargs,
        )
        self.variant = check_variant(variant)
        self.pairing, self.basis = pairing, Basis(basis, basis_seed)
        check_known("form", form, get_args(Form))
        self.form = form
        self.frame: Frame | None = None
        self._bind_as_told()

    def _parameter_names(self) -> Sequence[str]:
        return ("theta", "alpha")

    @classmethod
    def recipe_fields(cls) -> tuple[str, ...]:
        """As in the base class, and the rotation's form."""
        return (*super().recipe_fields(), "variant", "pairing", "basis", "basis_seed")

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
        """The arguments that make this intervention again, without its values, as plain JSON values."""
        own = {
            "variant": self.variant,
            "pairing": self.pairing,
            "basis": self.basis.kind,
            "basis_seed": self.basis.seed,
        }
        return {**super().spec(), **own, "form": self.form}

    def fit_basis(self, hidden: Tensor | Sequence[Tensor]) -> None:
        """Measure the axes of `basis="pca"` on hidden states, [tokens, width] or a list of such: a site's of `RoadModel.collect`.

        roadint.train does so by itself, once, before the first step. Raises RoadError for another basis and for another width.
        """
        self._check_bound()
        fit(self.frame, hidden)

    def values(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: θ, α and, where it is measured, the basis."""
        return {**super().values(), **self.basis.measured(self.frame)}

    def _check_strengths(self, strengths: Tensor) -> None:
        unusual = ~((strengths >= 0) & (strengths <= 1)).all(dim=1)
        if bool(unusual.any()):
            check_scale(self.alpha, strengths[unusual], self._owner)

    def _owner(self, block: int) -> str:
        owners = [
            repr(name) for name, subspace in self.partition.items() if block in subspace.blocks
        ]
        return f"{''.join(owners) or 'no subspace'} at layer {self.layer}"

    def rotation(self, strengths: Tensor | float = 1.0, learning: Tensor | None = None) -> Rotation:
        """The Rotation at these strengths, one for each leading row; see roadint.rotation.rotation.rotation.

        learning: [rows, blocks] bool, the blocks that get a row's gradient; all of them by default.
        """
        self._check_bound()
        theta: Tensor = self.theta
        alpha: Tensor = self.alpha
        if learning is not None:
            learning = learning.reshape(*learning.shape, *(1,) * (theta.ndim - 1))
            theta, alpha = (
                torch.where(learning, theta, theta.detach()),
                torch.where(learning, alpha, alpha.detach()),
            )
        found = rotation(theta, alpha, strengths, variant=self.variant, group=self.group)
        return found if self.form == "rotation" else found.as_interchange()

    def rows(self, strengths: Tensor, learning: Tensor | None = None) -> Rotation:
        """What the rows of a batch are edited with; as `rotation`. Raises RoadError where a row that acts is not finite."""
        found = self.rotation(strengths, learning)
        if self._may_wait:
            acting = (strengths != 0).any(
                dim=-1, keepdim=True
            )  # of a row, all blocks: one at strength 0 is NaN if its θ is
            self._check_finite(
                strengths,
                *(each.where(acting, 0) for each in (found.u, found.v) if each is not None),
            )
        return found

    def edit(self, h: Tensor, rotation: Rotation, source: Tensor | None = None) -> Tensor:
        """Apply a rotation to hidden states [..., width], in the basis of this intervention; same dtype out."""
        return rotate(h, rotation, self.frame)

    def _rescale(self, strengths: Tensor) -> None:
        strengths = strengths.reshape(-1, *(1,) * (self.theta.ndim - 1))
        theta, alpha = canonical(self.theta, self.alpha)
        self.theta.copy_(theta * strengths)
        self.alpha.copy_(alpha**strengths)

    def extra_repr(self) -> str:
        """What `print` shows of it, inside and outside a model."""
        return f"{super().extra_repr()}, variant={self.variant}"
