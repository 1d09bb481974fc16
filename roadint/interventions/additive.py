"""The base class of LoReFT, DiReFT and steering, which add multiples of a few directions.

RoAd is compared with these kinds, at the same sites, with the same trainer and expressions.
The directions are the units of a partition, as in pyreft's composition experiment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from roadint.errors import RoadError, quoted
from roadint.files.rules import Rule, Shapes, whole
from roadint.grammar.subspace import Partition
from roadint.interventions.arguments import WIDEST
from roadint.interventions.pyvene.entry import EditIntervention

DEFAULT_RANK = 8


@dataclass(frozen=True)
class Strengths:
    """The strengths of the units, and which of them get the row's gradient (all where None)."""

    values: Float[Tensor, "*rows units"]
    learning: Bool[Tensor, "*rows units"] | None = None

    def row(self, index: Int[Tensor, "..."]) -> "Strengths":
        """The strengths of the rows `index`."""
        learning = None if self.learning is None else self.learning[index]
        return Strengths(self.values[index], learning)


class AdditiveIntervention(EditIntervention):
    """`h + (s ⊙ e(h)) D`: `rank` numbers e(h), times the strengths s, along the matrix rows of D.

    Args:
        rank: How many units there are; subspaces are ranges of units ("[0, d/2)" is the first
            half).
        **arguments: Those of `PyveneEntry`.

    Raises:
        RoadError: where an argument does not fit.
    """

    def __init__(self, *, rank: int | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        named = arguments.get("low_rank_dimension")  # pyvene's name of it
        if None not in (rank, named) and rank != named:
            raise RoadError(
                f"rank {quoted(rank)} and low_rank_dimension {quoted(named)}: expected it said once"
            )
        rank = named if rank is None else rank
        rank = DEFAULT_RANK if rank is None else rank
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise RoadError(
                f"rank {quoted(rank)} is no count: expected an integer from 1, such as 8"
            )
        self.rank = rank
        self._bind_first()

    def representation(self, configured: Mapping[str, Any]) -> dict[str, Any]:
        """As in the base class; pyvene's low_rank_dimension has to be the rank."""
        wanted = configured.get("low_rank_dimension")
        if wanted is not None and wanted != self.rank:
            raise RoadError(
                f"low_rank_dimension {quoted(wanted)} for an intervention of rank {self.rank}: "
                "expected the same"
            )
        return super().representation(configured)

    def _parameter_names(self) -> Sequence[str]:
        return tuple(self._shapes(self.rank, 1))

    def _build(self, width: int) -> Partition:
        if not 0 < self.rank <= width:
            raise RoadError(f"rank {self.rank} does not fit width {width}: expected 1 to {width}")
        partition = Partition(self._subspaces, self.rank, unit=1)
        self._make_parameters(width)
        return partition

    def _make_parameters(self, width: int) -> None:
        raise NotImplementedError

    @property
    def trainable_count(self) -> int:
        """How many numbers train."""
        self._check_bound()
        return sum(parameter.numel() for parameter in self.parameters())

    def spec(self) -> dict[str, Any]:
        """As in the base class, and the rank."""
        return {**super().spec(), "rank": self.rank}

    @classmethod
    def recipe_fields(cls) -> tuple[str, ...]:
        """As in the base class, and the rank."""
        return (*super().recipe_fields(), "rank")

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """The rule for the rank."""
        return {"rank": whole(1, WIDEST)}

    @classmethod
    def needed_tensors(cls, spec: Mapping[str, Any], where: str) -> Shapes:
        """The parameters of the kind, for its rank and width."""
        return cls._shapes(spec.get("rank", DEFAULT_RANK), spec["embed_dim"])

    @classmethod
    def _shapes(cls, rank: int, width: int) -> Shapes:
        """The shapes of the parameters, by name."""
        raise NotImplementedError

    def _check_strengths(self, strengths: Float[Tensor, "rows units"]) -> None:
        largest = strengths.abs().max()
        if not bool(largest <= 1):
            sizes = torch.stack([parameter.detach().abs().max() for parameter in self.parameters()])
            if not bool((largest.to(sizes.device) * sizes).isfinite().all()):
                raise RoadError(
                    f"strength {float(largest):g} at layer {self.layer} makes values "
                    "that are not finite: expected a smaller one"
                )

    def rows(
        self,
        strengths: Float[Tensor, "rows units"],
        learning: Bool[Tensor, "rows units"] | None = None,
    ) -> Strengths:
        """The strengths with which rows are edited.

        Raises:
            RoadError: where the values are not finite.
        """
        if self._may_wait:
            self._check_finite(strengths, *self.parameters())
        return Strengths(strengths, learning)

    def edit(
        self,
        h: Float[Tensor, "*rows width"],
        rows: Strengths,
        source: Float[Tensor, "*rows width"] | None = None,
    ) -> Float[Tensor, "*rows width"]:
        """The edited hidden states, computed in float32, in the dtype of `h`."""
        values = self._current()
        if rows.learning is None:
            added = self._added(h.float(), rows.values, *values)
        else:
            still = [value.detach() for value in values]
            added = self._added(h.float(), rows.values * rows.learning, *values)
            added = added + self._added(h.float(), rows.values * ~rows.learning, *still)
        return (h + added).to(h.dtype)

    def _current(self) -> tuple[Tensor, ...]:
        """The values for `_added`, once for every call."""
        raise NotImplementedError

    def _added(self, h: Tensor, strengths: Tensor, *values: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments that `print` shows."""
        return f"{super().extra_repr()}, rank={self.rank}"
