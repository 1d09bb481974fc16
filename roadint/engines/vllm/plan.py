"""What a request's composition does, token by token: which edits act where."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from roadint.engines.vllm.served import Served
from roadint.grammar.composition import Composition
from roadint.grammar.position import Position

Terms = tuple[tuple[str, float], ...]
"""Names without a label, and their strengths."""

Ranks = Int[np.ndarray, " tokens"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention that acts, with the strengths of its subspaces.

    Args:
        served: The checkpoint that it comes from.
        index: Its index in the checkpoint.
        terms: The subspaces that act.
    """

    served: Served
    index: int
    terms: Terms

    @property
    def intervention(self) -> Any:
        """The intervention."""
        return self.served.interventions[self.index]

    @property
    def position(self) -> Position:
        """The tokens that it edits."""
        position: Position = self.intervention.position
        return position

    @property
    def composition(self) -> Composition:
        """The subspaces that act, as a composition."""
        return Composition(self.terms)


@dataclass(frozen=True, eq=False)
class Plan:
    """What acts in a request.

    A token is edited by the interventions whose positions select it. Which of the plan's positions
    do is its code, a bit for each: 0 for a token that stays as it is. Tokens of one code take one
    row of the table.

    Args:
        edits: The interventions that act, in the order in which they do.
        adapters: The checkpoints whose adapters act, and the terms that name them.
    """

    edits: tuple[Edit, ...]
    adapters: tuple[tuple[Served, Terms], ...]

    @cached_property
    def hidden_key(self) -> tuple[Any, ...]:
        """What the hidden states of two requests with equal keys are edited with is equal."""
        return tuple((edit.served.fingerprint, edit.index, edit.terms) for edit in self.edits)

    @cached_property
    def adapter_key(self) -> tuple[Any, ...]:
        """What acts at linear layers in two requests with equal keys is equal."""
        return tuple((served.fingerprint, terms) for served, terms in self.adapters)

    @cached_property
    def fingerprints(self) -> frozenset[str]:
        """The checkpoints that it needs."""
        parts = [edit.served for edit in self.edits] + [served for served, _ in self.adapters]
        return frozenset(served.fingerprint for served in parts)

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """The different positions of its interventions, one a bit of a code."""
        return tuple(dict.fromkeys(edit.position for edit in self.edits))

    @cached_property
    def after_prompt(self) -> bool:
        """Whether generated tokens may be edited."""
        return any(position.after_prompt for position in self.positions)

    def edits_of(self, code: int) -> Sequence[Edit]:
        """The interventions that act at tokens of a code, in order."""
        acting = [position for bit, position in enumerate(self.positions) if code >> bit & 1]
        return [edit for edit in self.edits if edit.position in acting]

    def codes(self, rank: Ranks, prompt_length: Ranks) -> Int[np.ndarray, " tokens"]:
        """The code of every token.

        Args:
            rank: The index of every token in its row.
            prompt_length: The length of the prompt of every token's row.
        """
        codes = torch.zeros(len(rank), dtype=torch.int64)
        ranks, lengths = torch.from_numpy(rank)[:, None], torch.from_numpy(prompt_length)
        for bit, position in enumerate(self.positions):
            codes |= position.edited(ranks, lengths)[:, 0].long() << bit
        return codes.numpy()


class PromptEdits:
    """The edited tokens of one request's prompt, and those that follow it.

    Args:
        plan: What acts.
        prompt_length: The length of the prompt, in tokens.
    """

    def __init__(self, plan: Plan, prompt_length: int) -> None:
        self.plan, self.prompt_length = plan, prompt_length
        codes = plan.codes(np.arange(prompt_length), np.full(prompt_length, prompt_length))
        self._ranks = codes.nonzero()[0]
        self._codes = codes[self._ranks]

    def reaches(self, start: int) -> bool:
        """Whether a token from this rank on may be edited."""
        return self.plan.after_prompt or start < self.prompt_length

    def between(self, start: int, stop: int) -> tuple[Ranks, Int[np.ndarray, " tokens"]]:
        """The edited tokens of a part of the row, and their codes.

        Args:
            start: The rank of the first token of the part.
            stop: The rank after the last one.

        Returns:
            The ranks, in order, and the codes.
        """
        low, high = self._ranks.searchsorted((start, stop))
        ranks, codes = self._ranks[low:high], self._codes[low:high]
        if stop > self.prompt_length and self.plan.after_prompt:
            generated = np.arange(max(start, self.prompt_length), stop)
            lengths = np.full(len(generated), self.prompt_length)
            of_generated = self.plan.codes(generated, lengths)
            edited = of_generated.nonzero()[0]
            ranks = np.concatenate((ranks, generated[edited]))
            codes = np.concatenate((codes, of_generated[edited]))
        return ranks, codes

    def key_of_block(self, start: int, stop: int) -> tuple[Any, ...] | None:
        """What a block of the prefix cache is keyed by, beside its tokens and the blocks before it.

        Args:
            start: The rank of the block's first token.
            stop: The rank after its last one.

        Returns:
            None for a block that all compositions share: with no adapter and no edited token in it.
        """
        key: list[Any] = []
        if start == 0 and self.plan.adapters:  # the blocks after it are chained to it
            key.append(("roadint.adapters", repr(self.plan.adapter_key)))
        ranks, codes = self.between(start, stop)
        if len(ranks):
            edited = tuple(zip(ranks.tolist(), codes.tolist(), strict=True))
            positions = tuple(map(repr, self.plan.positions))
            key.append(("roadint", repr(self.plan.hidden_key), repr(positions), repr(edited)))
        return tuple(key) or None
