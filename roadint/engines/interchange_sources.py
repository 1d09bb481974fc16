"""Sources of interchanges: hidden states of another input, aligned with the tokens of the base."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from roadint.engines.call import Source
from roadint.errors import RoadError, quoted


@dataclass(frozen=True)
class AlignedSource:
    """A source, and the state that each token of the base takes.

    Args:
        states: The states of each row, padded to the longest row.
        order: For each token of the base, the index of the state that it takes; −1 for none.
    """

    states: Float[Tensor, "rows longest width"]
    order: Int[Tensor, "rows columns"]

    def at(
        self, rows: Int[Tensor, " tokens"], columns: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens width"]:
        """The states that tokens of the base take; a generated token takes the last column's."""
        columns = columns.clamp(max=self.order.shape[1] - 1)
        return self.states[rows, self.order[rows, columns]]


def align(
    source: Source, edited: Bool[Tensor, "rows columns"], after_prompt: bool, layer: int
) -> AlignedSource:
    """Align a source with the tokens of the base that take from it.

    Args:
        source: For each row, [tokens, width] or [width].
        edited: True for the tokens of the base that take a state.
        after_prompt: Whether generated tokens take one too.
        layer: The intervention's layer, for messages.

    Raises:
        RoadError: where a row has more or fewer states than tokens that take one.
    """
    if len(source) != len(edited):
        raise RoadError(
            f"a source of {len(source)} rows for {len(edited)} rows of the base: expected one a row"
        )
    order = (edited.long().cumsum(1) - 1).masked_fill(~edited, -1)
    # Counting waits for the device; a state for all tokens fits any number of them.
    alike = all(states.ndim == 1 for states in source)
    counts = [0] * len(edited) if alike else edited.sum(1).tolist()
    for row, (states, count) in enumerate(zip(source, counts, strict=True)):
        if states.ndim == 1:
            order[row] = 0
        elif after_prompt:
            raise RoadError(
                f"the interchange at layer {layer} edits generated tokens, for which the source of "
                f"row {row} has no states: expected one for all, [width]"
            )
        elif count and len(states) != count:
            raise RoadError(
                f"row {row} has {count} tokens to edit at layer {layer}, its source {len(states)}: "
                "expected as many; name the source's own with source_positions"
            )
    listed = [states[None] if states.ndim == 1 else states for states in source]
    padded = nn.utils.rnn.pad_sequence(listed, batch_first=True)
    return AlignedSource(padded, order.to(padded.device))


def check_source(source: Any, width: int, layer: int) -> None:
    """Check that a source holds hidden states for every row.

    Raises:
        RoadError: for anything else.
    """
    listed = isinstance(source, (list, tuple)) or (torch.is_tensor(source) and source.ndim > 1)
    for states in source if listed else [None]:
        if _is_state(states, width):
            continue
        if torch.is_tensor(states):
            what = f"shape {tuple(states.shape)}"
        else:
            what = quoted(states if isinstance(source, (list, tuple)) else source)
        raise RoadError(
            f"the source at layer {layer} has {what} for a row: expected hidden states "
            f"[tokens, {width}] or [{width}], as collect returns them"
        )


def _is_state(states: Any, width: int) -> bool:
    if not torch.is_tensor(states) or states.is_meta:
        return False
    return states.ndim in (1, 2) and states.shape[-1] == width
