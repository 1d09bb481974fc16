"""What happens to the values of an intervention around an optimizer step: rates of their own, decay, bounds.

Adam's step does not depend on the size of a gradient, so none of these can be had by scaling the loss: they act on the values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roadint.adapters.adapter import RoadAdapter
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.interventions.base import SubspaceIntervention, subspace_names
from roadint.interventions.road import RoadIntervention


@dataclass(frozen=True)
class Constraints:
    """rates: subspace → learning rate, as a multiple of the run's own; RoAd alone, whose blocks are apart.

    decay: each step shrinks every edit by the rate times this, as a strength of 1 − rate·decay does: toward the identity, where
    weight decay would pull α to 0. max_log_scale: the bound of |log α|, 0 for pure rotations; RoAd alone.
    """

    rates: Mapping[str, float]
    decay: float = 0.0
    max_log_scale: float | None = None

    def check(self, interventions: Sequence[SubspaceIntervention]) -> None:
        """Raises RoadError for a name or an intervention that this can't be done for."""
        names = subspace_names(interventions)
        for name in self.rates:
            if name not in names:
                raise RoadError(
                    f"no subspace {quoted(name)} to give a rate: expected one of {listing(names)}{did_you_mean(name, names)}"
                )
        others = [each for each in interventions if not isinstance(each, RoadIntervention)]
        if (self.rates or self.max_log_scale is not None) and others:
            raise RoadError(
                "rates of subspaces and bounds of the scale are for RoadInterventions: others have no blocks"
            )

    def install(
        self,
        optimizer: torch.optim.Optimizer,
        interventions: Sequence[SubspaceIntervention],
        adapters: Sequence[RoadAdapter] = (),
    ) -> None:
        """Act around every step of the optimizer. Raises RoadError for a name or an intervention that this can't be done for."""
        self.check(interventions)
        turning = [each for each in interventions if isinstance(each, RoadIntervention)]
        scales: list[Tensor] = [
            *(each.alpha for each in turning),
            *(each.alpha for each in adapters),
        ]
        if self.rates:
            scaled: list[tuple[Tensor, Tensor]] = []
            for each in turning:
                factors = each.partition.strengths(
                    {name: self.rates.get(name, 1.0) for name in each.partition}
                )
                for value in (each.theta, each.alpha):
                    scaled.append(
                        (value, factors.reshape(-1, *(1,) * (value.ndim - 1)).to(value.device))
                    )
            before: list[Tensor] = []

            def remember(*_: Any) -> None:
                before[:] = [value.detach().clone() for value, _ in scaled]

            @torch.no_grad()
            def scale(*_: Any) -> None:
                for (value, factor), old in zip(scaled, before, strict=True):
                    value.copy_(old + factor * (value - old))

            optimizer.register_step_pre_hook(remember)
            optimizer.register_step_post_hook(scale)
        if self.decay:

            def shrink(done: torch.optim.Optimizer, *_: Any) -> None:
                for each in interventions:
                    each.rescale(
                        dict.fromkeys(each.partition, 1 - done.param_groups[0]["lr"] * self.decay)
                    )
                for adapter in adapters:
                    adapter.rescale(1 - done.param_groups[0]["lr"] * self.decay)

            optimizer.register_step_post_hook(shrink)
        if self.max_log_scale is not None:
            bound = torch.tensor(self.max_log_scale).exp()

            @torch.no_grad()
            def clamp(*_: Any) -> None:
                for alpha in scales:
                    alpha.clamp_(1 / bound, bound)

            optimizer.register_step_post_hook(clamp)
