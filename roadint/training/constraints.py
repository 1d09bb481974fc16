"""Constraints on the values around an optimizer step: learning rates of subspaces, decay, bounds.

Adam's step does not depend on the size of a gradient, so scaling the loss has none of these
effects; constraints act on the values. A kind of intervention decides which constraints it allows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from roadint.adapters.adapter import RoadAdapter
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.interventions.base import SubspaceIntervention, subspace_names


class Rescaled(Protocol):
    """What can be rescaled: an intervention, an adapter."""

    def rescale(self, strengths: float, /) -> None:
        """Make a strength the new strength 1, in place."""


@dataclass(frozen=True)
class Constraints:
    """What happens to values beside the optimizer's steps.

    Attributes:
        rates: Subspace → learning rate, as a multiple of the run's; for kinds whose units have
            their own parameters, such as RoAd's blocks.
        decay: After every step, a strength of 1 − rate·decay becomes the new strength 1: edits
            shrink toward the identity, where weight decay would pull α to 0.
        max_log_scale: The bound of |log α|, 0 for pure rotations; for kinds that have scales.
    """

    rates: Mapping[str, float]
    decay: float = 0.0
    max_log_scale: float | None = None

    def check(self, interventions: Sequence[SubspaceIntervention]) -> None:
        """Check that interventions allow the constraints.

        Raises:
            RoadError: for an unknown subspace, and for an intervention that does not allow them.
        """
        names = subspace_names(interventions)
        for name in self.rates:
            if name not in names:
                raise RoadError(
                    f"no subspace {quoted(name)} to give a rate: expected one of {listing(names)}"
                    f"{did_you_mean(name, names)}"
                )
        without_units = not all(edit.unit_parameters() for edit in interventions)
        without_scales = not all(edit.scale_parameters() for edit in interventions)
        bounded = self.max_log_scale is not None
        if (self.rates and without_units) or (bounded and without_scales):
            raise RoadError(
                "rates of subspaces and bounds of the scale are for RoadInterventions and other "
                "kinds whose units have parameters of their own: "
                f"expected none for {listing(sorted({edit.kind for edit in interventions}))}"
            )

    def install(
        self,
        optimizer: torch.optim.Optimizer,
        interventions: Sequence[SubspaceIntervention],
        adapters: Sequence[RoadAdapter] = (),
    ) -> None:
        """Add hooks around the optimizer's steps; raises as `check` does."""
        self.check(interventions)
        if self.rates:
            steps = _ScaledSteps(self._factors(interventions))
            optimizer.register_step_pre_hook(steps.remember)
            optimizer.register_step_post_hook(steps.scale)
        if self.decay:
            optimizer.register_step_post_hook(
                partial(_shrink, [*interventions, *adapters], self.decay)
            )
        if self.max_log_scale is not None:
            scales = [scale for edit in interventions for scale in edit.scale_parameters()]
            scales += [adapter.alpha for adapter in adapters]
            bound = float(torch.tensor(self.max_log_scale).exp())
            optimizer.register_step_post_hook(partial(_clamp, scales, bound))

    def _factors(
        self, interventions: Sequence[SubspaceIntervention]
    ) -> list[tuple[Tensor, Tensor]]:
        """Parameters, and the factors of their units' steps."""
        factors: list[tuple[Tensor, Tensor]] = []
        for intervention in interventions:
            rates = {name: self.rates.get(name, 1.0) for name in intervention.partition}
            by_unit = intervention.partition.strengths(rates)
            for value in intervention.unit_parameters():
                shaped = by_unit.reshape(-1, *(1,) * (value.ndim - 1)).to(value.device)
                factors.append((value, shaped.expand_as(value).contiguous()))
        return factors


@dataclass
class _ScaledSteps:
    """Scales an optimizer's step, after it; all parameters at once, as few operations."""

    factors: Sequence[tuple[Tensor, Tensor]]
    before: list[Tensor] = field(default_factory=list)

    def remember(self, *_: Any) -> None:
        self.before = [value.detach().clone() for value, _ in self.factors]

    @torch.no_grad()
    def scale(self, *_: Any) -> None:
        values, factors = map(list, zip(*self.factors, strict=True))
        steps = torch._foreach_sub(values, self.before)
        torch._foreach_mul_(steps, factors)
        torch._foreach_copy_(values, torch._foreach_add(self.before, steps))


def _shrink(
    edits: Sequence[Rescaled], decay: float, optimizer: torch.optim.Optimizer, *_: Any
) -> None:
    for edit in edits:
        edit.rescale(1 - optimizer.param_groups[0]["lr"] * decay)


@torch.no_grad()
def _clamp(scales: Sequence[Tensor], bound: float, *_: Any) -> None:
    torch._foreach_clamp_min_(list(scales), 1 / bound)
    torch._foreach_clamp_max_(list(scales), bound)
