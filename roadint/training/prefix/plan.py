"""Which tokens are stored, and in which slots."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from roadint.data.collate import Example
from roadint.grammar.position import Position
from roadint.model.road_model import RoadModel

TokenGrid = Int[Tensor, "rows columns"]


@dataclass(frozen=True)
class TokenPlan:
    """Where the tokens of all examples are stored, one example after another.

    Attributes:
        starts: For each example, the first token that a step must run. From it on, hidden states
            are stored; of the tokens before it, keys and values.
        lengths: For each example, the number of tokens.
        shared: The number of equal tokens (the template's) with which all examples begin. Their
            keys and values are stored once, in the first slots.
    """

    starts: Int[Tensor, " examples"]
    lengths: Int[Tensor, " examples"]
    shared: int

    @classmethod
    def of(cls, road: RoadModel, examples: Sequence[Example]) -> "TokenPlan":
        """The plan that leaves a step as little to do as the edit allows."""
        starts = [first_needed(road, example) for example in examples]
        lengths = torch.tensor([len(example.inputs) for example in examples])
        shared = min(common_start([example.prompt for example in examples]), min(starts))
        return cls(torch.tensor(starts), lengths, shared)

    def hidden_states_alone(self) -> "TokenPlan":
        """The plan that stores the hidden states of all tokens, and no keys and values."""
        return TokenPlan(torch.zeros_like(self.starts), self.lengths, 0)

    @property
    def hidden_count(self) -> int:
        """How many hidden states are stored."""
        return int((self.lengths - self.starts).sum())

    @property
    def prefix_count(self) -> int:
        """How many tokens have stored keys and values."""
        return self.shared + int((self.starts - self.shared).sum())

    def hidden_slots(self, index: Int[Tensor, " rows"], rank: TokenGrid) -> TokenGrid:
        """The slots of tokens' hidden states.

        Args:
            index: For each row, the example.
            rank: The tokens, by index in their example.

        Returns:
            The slots.
        """
        counts = self.lengths - self.starts
        return (counts.cumsum(0) - counts - self.starts)[index][:, None] + rank

    def prefix_slots(self, index: Int[Tensor, " rows"], rank: TokenGrid) -> TokenGrid:
        """The slots of tokens' keys and values; arguments as in `hidden_slots`."""
        counts = self.starts - self.shared
        unshared = (counts.cumsum(0) - counts)[index][:, None] + rank
        return torch.where(rank < self.shared, rank, unshared)


def first_needed(road: RoadModel, example: Example) -> int:
    """The first token of an example that a step must run.

    Args:
        road: The model, whose interventions decide.
        example: The example.

    Returns:
        The index, from 0, of the first edited token or, where that comes earlier, of the token that
        predicts the completion's first.
    """
    if road.adapters:
        return 0  # they act on every token
    length = len(example.prompt)
    edited = [_edited_tokens(edit.position, length) for edit in road.interventions]
    return min([length - 1, *(tokens[0] for tokens in edited if tokens)])


def _edited_tokens(position: Position, length: int) -> list[int]:
    """The edited tokens of a prompt, as `Position.indices`, but without its check.

    `at(i)` may name a token that the prompt does not have, where the intervention does not act on
    the prompt's data set.
    """
    edited = position.edited(torch.arange(length)[None], torch.tensor([length]))
    return [int(token) for token in edited[0].nonzero()[:, 0]]


def common_start(prompts: Sequence[list[int]]) -> int:
    """The number of equal tokens with which all prompts begin.

    Examples:
        >>> common_start([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 6]])
        2
    """
    first, last = min(prompts), max(prompts)  # what these two share, all between them share
    count = 0
    for token, other in zip(first, last, strict=False):
        if token != other:
            break
        count += 1
    return count
