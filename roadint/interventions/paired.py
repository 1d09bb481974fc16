"""The base class of kinds that turn pairs of coordinates: it holds the basis of the pairs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from roadint.errors import RoadError
from roadint.files.rules import Rule, Shapes
from roadint.interventions.arguments import BASIS_RULES
from roadint.interventions.pyvene.entry import PyveneEntry
from roadint.rotation.basis import Axes, Basis, BasisKind, Frame, HiddenStates


class PairedIntervention(PyveneEntry):
    """The base class of kinds that turn pairs of coordinates of a fixed orthogonal basis.

    Args:
        basis: The basis; see `roadint.rotation.basis.Basis`.
        basis_seed: The seed of a random one.
        **arguments: Those of `PyveneEntry`.
    """

    def __init__(
        self, *, basis: BasisKind = "identity", basis_seed: int = 0, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.basis = Basis(basis, basis_seed)
        self.frame: Frame | None = None  # the basis at the width, once that is known

    def spec(self) -> dict[str, Any]:
        """As in the base class, and the basis."""
        return {**super().spec(), "basis": self.basis.kind, "basis_seed": self.basis.seed}

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """Those of the basis."""
        return {**super().rules(), **BASIS_RULES}

    @classmethod
    def needed_tensors(cls, spec: Mapping[str, Any], where: str) -> Shapes:
        """The axes of a basis that is measured; a kind adds its parameters."""
        return {"basis": (spec["embed_dim"],) * 2} if spec.get("basis") == "pca" else {}

    def values(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the parameters and, where it is measured, the basis."""
        return {**super().values(), **self.basis.measured(self.frame)}

    def unmeasured_axes(self) -> Axes | None:
        """The axes of `basis="pca"`, until they are known."""
        axes = self.frame
        return axes if isinstance(axes, Axes) and not axes.measured else None

    def fit_basis(self, hidden: HiddenStates) -> None:
        """Measure the axes of `basis="pca"`.

        `roadint.train` does it once, before the first step.

        Args:
            hidden: Hidden states of any number of tokens, or a list of such tensors, as
            `RoadModel.collect` returns for an intervention.

        Raises:
            RoadError: for another basis and for another width.
        """
        self._check_bound()
        if not isinstance(self.frame, Axes):
            raise RoadError(
                "no basis to measure: expected an intervention with basis='pca' "
                "whose width is known"
            )
        self.frame.fit(hidden)
