"""What RoAd is compared with, at the same sites, trained by the same trainer and composed by the same expressions.

LoReFT and DiReFT ("ReFT", arXiv 2404.03592, equations 2 and 4) edit in a subspace of rank r; its rows are the units of a partition,
as in pyreft's composition experiment. A steering vector adds one direction for each subspace. Strengths multiply what is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from roadint.errors import RoadError, quoted
from roadint.grammar.subspace import Partition
from roadint.interventions.base import EditIntervention
from roadint.interventions.registry import register


@dataclass(frozen=True)
class Strengths:
    """The strengths of each row's units, [..., units], and which of them get the row's gradient (all where None)."""

    values: Tensor
    learning: Tensor | None = None

    def row(self, index: Tensor) -> "Strengths":
        """Those of the rows `index`."""
        return Strengths(
            self.values[index], None if self.learning is None else self.learning[index]
        )


class Baseline(EditIntervention):
    """`h + s ⊙ e(h) · D`: an edit of `units` numbers e(h), scaled by the strengths s, along the rows of D.

    rank: how many units, 8 by default; the subspaces are ranges of them ("[0, d/2)" is the first half). The rest: as in
    RoadIntervention.
    """

    def __init__(self, *, rank: int | None = None, **site: Any) -> None:
        super().__init__(**site)
        named = site.get("low_rank_dimension")  # pyvene's word for it
        if None not in (rank, named) and rank != named:
            raise RoadError(
                f"rank {quoted(rank)} and low_rank_dimension {quoted(named)}: expected it said once"
            )
        chosen = rank if rank is not None else named if named is not None else 8
        if isinstance(chosen, bool) or not isinstance(chosen, int):
            raise RoadError(
                f"rank {quoted(chosen)} is no count: expected an integer from 1, such as 8"
            )
        self.rank = chosen
        self._bind_as_told()

    @classmethod
    def recipe_fields(cls) -> tuple[str, ...]:
        """As in the base class, and the rank."""
        return (*super().recipe_fields(), "rank")

    def _build(self, width: int) -> Partition:
        if not 0 < self.rank <= width:
            raise RoadError(f"rank {self.rank} does not fit width {width}: expected 1 to {width}")
        partition = Partition(self._subspaces, self.rank, unit=1)
        self._make(width)
        return partition

    def _make(self, width: int) -> None:
        """Make the parameters."""
        raise NotImplementedError

    @property
    def trainable_count(self) -> int:
        """How many numbers train."""
        self._check_bound()
        return sum(parameter.numel() for parameter in self.parameters())

    def spec(self) -> dict[str, Any]:
        """The arguments that make this intervention again, without its values, as plain JSON values."""
        return {**super().spec(), "rank": self.rank}

    def _check_strengths(self, strengths: Tensor) -> None:
        largest = strengths.abs().max()
        if not bool(largest <= 1):
            sizes = torch.stack([parameter.detach().abs().max() for parameter in self.parameters()])
            if not bool((largest.to(sizes.device) * sizes).isfinite().all()):
                raise RoadError(
                    f"strength {float(largest):g} at layer {self.layer} makes values that are not finite: expected a smaller one"
                )

    def rows(self, strengths: Tensor, learning: Tensor | None = None) -> Strengths:
        """What the rows are edited with: their strengths. Raises RoadError where the values are not finite."""
        if self._may_wait:
            self._check_finite(strengths, *self.parameters())
        return Strengths(strengths, learning)

    def edit(self, h: Tensor, rows: Strengths, source: Tensor | None = None) -> Tensor:
        """The edited hidden states [..., width], computed in float32; same dtype out."""
        parameters = self._current()
        if rows.learning is None:
            added = self._added(h.float(), rows.values, *parameters)
        else:
            still = [each.detach() for each in parameters]
            added = self._added(h.float(), rows.values * rows.learning, *parameters)
            added = added + self._added(h.float(), rows.values * ~rows.learning, *still)
        return (h + added).to(h.dtype)

    def _current(self) -> tuple[Tensor, ...]:
        """The values that `_added` takes, for one call."""
        raise NotImplementedError

    def _added(self, h: Tensor, strengths: Tensor, *parameters: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What `print` shows of it, inside and outside a model."""
        return f"{super().extra_repr()}, rank={self.rank}"


@register("loreft")
class LoreftIntervention(Baseline):
    """LoReFT with subspaces: `h + Rᵀ(W h + b − R h)`, R [rank, width] with orthonormal rows, of which a subspace holds some.

    learned_source holds W and b, rotate_layer Rᵀ, as in pyreft. All rows of R share one orthogonal parametrisation: training some
    rows moves the others, unlike RoAd's blocks.
    """

    def _parameter_names(self) -> Sequence[str]:
        return (
            "learned_source.weight",
            "learned_source.bias",
            "rotate_layer.parametrizations.weight.original",
        )

    def _make(self, width: int) -> None:
        self.learned_source = nn.Linear(width, self.rank, dtype=torch.float32)
        self.rotate_layer = nn.Module()
        self.rotate_layer.weight = nn.Parameter(torch.empty(width, self.rank, dtype=torch.float32))
        nn.init.orthogonal_(self.rotate_layer.weight)
        orthogonal(self.rotate_layer, use_trivialization=False)

    def _current(self) -> tuple[Tensor, ...]:
        rotate: Tensor = self.rotate_layer.weight  # type: ignore[assignment]
        return self.learned_source.weight, self.learned_source.bias, rotate

    def _added(self, h: Tensor, strengths: Tensor, *parameters: Tensor) -> Tensor:
        weight, bias, rotate = parameters
        return (strengths * (h @ weight.T + bias - h @ rotate)) @ rotate.T

    def _rescale(self, strengths: Tensor) -> None:
        weight, bias, rotate = self._current()
        weight.copy_(rotate.T + strengths[:, None] * (weight - rotate.T))
        bias.mul_(strengths)


@register("direft")
class DireftIntervention(Baseline):
    """DiReFT with subspaces, `h + W2ᵀ(W1 h + b)`: LoReFT without the orthogonality, each row of W2 its own."""

    def _parameter_names(self) -> Sequence[str]:
        return ("learned_source.weight", "learned_source.bias", "proj_layer.weight")

    def _make(self, width: int) -> None:
        self.learned_source = nn.Linear(width, self.rank, dtype=torch.float32)
        self.proj_layer = nn.Linear(width, self.rank, bias=False, dtype=torch.float32)

    def _current(self) -> tuple[Tensor, ...]:
        return self.learned_source.weight, self.learned_source.bias, self.proj_layer.weight

    def _added(self, h: Tensor, strengths: Tensor, *parameters: Tensor) -> Tensor:
        weight, bias, project = parameters
        return (strengths * (h @ weight.T + bias)) @ project

    def _rescale(self, strengths: Tensor) -> None:
        self.learned_source.weight.mul_(strengths[:, None])
        self.learned_source.bias.mul_(strengths)


@register("steering")
class SteeringIntervention(Baseline):
    """`h + s·v`: one learned vector for each unit, zero at the start; `rank` units, for one a subspace give their number."""

    def _parameter_names(self) -> Sequence[str]:
        return ("vectors",)

    def _make(self, width: int) -> None:
        self.vectors = nn.Parameter(torch.zeros(self.rank, width, dtype=torch.float32))

    def _current(self) -> tuple[Tensor, ...]:
        return (self.vectors,)

    def _added(self, h: Tensor, strengths: Tensor, *parameters: Tensor) -> Tensor:
        del h
        return strengths @ parameters[0]

    def _rescale(self, strengths: Tensor) -> None:
        self.vectors.mul_(strengths[:, None])
