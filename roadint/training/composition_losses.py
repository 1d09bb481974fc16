"""The training loss of every composition, summed between two lines of the log."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class CompositionLosses:
    """Sums and counts of tokens' losses, by composition.

    They stay on the device until the log needs them, so that no step waits for the device.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[Float[Tensor, " 2"]]] = defaultdict(list)

    def add(
        self,
        compositions: Sequence[Any],
        nll: Float[Tensor, " tokens"],
        rows: Int[Tensor, " tokens"],
    ) -> None:
        """Add a batch.

        Args:
            compositions: One a row.
            nll: The losses of the completions' tokens, in nats.
            rows: The rows of the tokens.
        """
        by_row = torch.zeros(len(compositions), 2, device=nll.device)
        by_row.index_add_(0, rows, torch.stack([nll.detach(), torch.ones_like(nll)], dim=1))
        for composition, sums in zip(compositions, by_row, strict=True):
            self._sums[str(composition)].append(sums)

    def take_means(self) -> dict[str, float]:
        """The mean loss of every composition, in nats a token; sums start again at zero."""
        means = {}
        for composition, sums in sorted(self._sums.items()):
            total, count = torch.stack(sums).sum(0).tolist()
            means[composition] = round(total / count, 4)
        self._sums.clear()
        return means

    def state(self) -> dict[str, Float[Tensor, "batches 2"]]:
        """The state that a checkpoint keeps."""
        return {name: torch.stack(sums).cpu() for name, sums in self._sums.items() if sums}

    def restore(self, state: Mapping[str, Float[Tensor, "batches 2"]]) -> None:
        """Restore the state of a checkpoint."""
        self._sums.clear()
        self._sums.update({name: list(sums) for name, sums in state.items()})
