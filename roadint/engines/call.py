"""What one call asks for: a composition for each row, and the tokens at which it acts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from roadint.grammar.composition import Composition
from roadint.grammar.position import Position, Tokens

Source = Tensor | Sequence[Tensor]
"""What one intervention takes: for each row [tokens, width], or [width] for all its tokens."""


@dataclass(frozen=True)
class Call:
    """One forward or generate call.

    Args:
        compositions: One a row.
        kept: True where a column holds a token, False for padding; columns in a cache included.
        prompt_length: How many of a row's tokens are the prompt; all of them by default.
        learning: For each row, the composition whose blocks get the row's gradient; all blocks by
            default.
        positions: Where all interventions act, in place of their own positions.
        sources: For each intervention, the hidden states that it takes; None where it takes none.
        generates: Whether the call generates tokens.
    """

    compositions: tuple[Composition, ...]
    kept: Bool[Tensor, "rows columns"]
    prompt_length: Int[Tensor, " rows"] | None = None
    learning: tuple[Composition, ...] | None = None
    positions: Position | Tokens | None = None
    sources: tuple[Source | None, ...] | None = None
    generates: bool = False

    @property
    def columns(self) -> int:
        """How many columns the call begins with; later ones are generated tokens."""
        return self.kept.shape[1]

    @cached_property
    def rank(self) -> Int[Tensor, "rows columns"]:
        """The index of each token among its row's tokens; −1 for padding."""
        return (self.kept.long().cumsum(dim=1) - 1).masked_fill(~self.kept, -1)

    @cached_property
    def token_count(self) -> Int[Tensor, " rows"]:
        """How many tokens each row has."""
        return self.kept.sum(dim=1)

    @cached_property
    def prompt_end(self) -> Int[Tensor, " rows"]:
        """For each row, the rank of the first token after the prompt."""
        if self.prompt_length is None:
            return self.token_count
        return self.prompt_length.to(self.kept.device)

    def rank_between(self, start: int, stop: int) -> Int[Tensor, "rows window"]:
        """The rank of each token in a window of columns, which may reach past those of the call."""
        ranks = self.rank[:, start:stop]
        new = torch.arange(max(start, self.columns), max(stop, self.columns), device=ranks.device)
        return torch.cat([ranks, self.token_count[:, None] + new - self.columns], dim=1)

    def edited(
        self, position: Position | Tokens, start: int = 0, stop: int | None = None
    ) -> Bool[Tensor, "rows window"]:
        """Which tokens in a window of columns (all of the call by default) a position selects."""
        ranks = self.rank_between(start, self.columns if stop is None else stop)
        return position.edited(ranks, self.prompt_end)
