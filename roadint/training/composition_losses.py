"""The training loss of every composition, summed between two lines of the log."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
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
        by_row = nll.new_zeros(len(compositions), 2)
        by_row.index_add_(0, rows, torch.stack([nll.detach(), torch.ones_like(nll)], dim=1))
        for composition, sums in zip(compositions, by_row, strict=True):
            self._sums[str(composition)].append(sums)

    def take_means(self, processes: int = 1) -> dict[str, float]:
        """The mean loss of every composition, in nats a token; sums start again at zero.

        Args:
            processes: How many processes train together; all of them have to ask.
        """
        own = {name: torch.stack(sums).sum(0).tolist() for name, sums in self._sums.items()}
        self._sums.clear()
        means = {}
        everywhere: list[dict[str, list[float]]] = gather_object([own]) if processes > 1 else [own]
        for composition in sorted({name for sums in everywhere for name in sums}):
            of_all = [sums[composition] for sums in everywhere if composition in sums]
            total, count = map(sum, zip(*of_all, strict=True))
            means[composition] = round(total / count, 4)
        return means

    def state(self) -> dict[str, Float[Tensor, "batches 2"]]:
        """The state that a checkpoint keeps."""
        return {name: torch.stack(sums).cpu() for name, sums in self._sums.items() if sums}

    def restore(self, state: Mapping[str, Float[Tensor, "batches 2"]]) -> None:
        """Restore the state of a checkpoint."""
        self._sums.clear()
        self._sums.update({name: list(sums) for name, sums in state.items()})
