"""Which tokens are stored, and in which slots."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from roadint.data.collate import Example
from roadint.grammar.position import Position
from roadint.model.road_model import RoadModel

Grid = Int[Tensor, "rows columns"]


@dataclass(frozen=True)
class TokenPlan:
    """Where the tokens of all examples are stored, one example after the other.

    Attributes:
        starts: The first token of each example that a step must run. Of it and what follows, hidden
            states are stored; of what comes before, keys and values.
        lengths: The number of tokens of each example.
        shared: With how many equal tokens all examples begin (the template's). Their keys and
            values are stored once, in the first slots.
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
        """Of how many tokens keys and values are stored."""
        return self.shared + int((self.starts - self.shared).sum())

    def hidden_slots(self, index: Int[Tensor, " rows"], rank: Grid) -> Grid:
        """Where the hidden states of tokens are.

        Args:
            index: The example of each row.
            rank: Tokens, counted from the beginning of their example.

        Returns:
            The slots.
        """
        counts = self.lengths - self.starts
        return (counts.cumsum(0) - counts - self.starts)[index][:, None] + rank

    def prefix_slots(self, index: Int[Tensor, " rows"], rank: Grid) -> Grid:
        """Where the keys and values of tokens are; arguments as of `hidden_slots`."""
        counts = self.starts - self.shared
        unshared = (counts.cumsum(0) - counts)[index][:, None] + rank
        return torch.where(rank < self.shared, rank, unshared)


def first_needed(road: RoadModel, example: Example) -> int:
    """The first token of an example that a step must run.

    Args:
        road: Says where it edits.
        example: Its prompt counts; the completion follows the edit or is part of it.

    Returns:
        The first edited token or, where it comes earlier, the one that predicts the completion's
        first. It counts from 0.
    """
    if road.adapters:
        return 0  # they act on every token
    length = len(example.prompt)
    edited = [_edited_tokens(site.position, length) for site in road.interventions]
    return min([length - 1, *(tokens[0] for tokens in edited if tokens)])


def _edited_tokens(position: Position, length: int) -> list[int]:
    """What `Position.edited` says of a prompt.

    A token that `at(i)` names may be beyond its end: only the prompts of the data sets that the
    intervention acts on must have it.
    """
    edited = position.edited(torch.arange(length)[None], torch.tensor([length]))
    return [int(token) for token in edited[0].nonzero()[:, 0]]


def common_start(prompts: Sequence[list[int]]) -> int:
    """With how many equal tokens all prompts begin.

    Example:
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
