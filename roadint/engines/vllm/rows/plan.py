"""What a request's composition does, token by token: which edits act where."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from roadint.adapters.adapter import RoadAdapter
from roadint.engines.vllm.served import Served
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import Composition
from roadint.grammar.position import Position
from roadint.rotation.rotation import Rotation

Terms = tuple[tuple[str, float], ...]
"""Names without a label, and their strengths."""

Ranks = Int[np.ndarray, " tokens"]
Codes = Int[np.ndarray, " tokens"]

MOST_POSITIONS = 62
"""The bits of a code."""

_LARGEST = 1e38  # float32 holds little more


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
        hidden: The checkpoints whose interventions act, and the terms that name their subspaces.
        adapters: The checkpoints whose adapters act, and the terms that name them.
    """

    hidden: tuple[tuple[Served, Terms], ...]
    adapters: tuple[tuple[Served, Terms], ...]

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """The interventions that act, in the order in which they do."""
        return tuple(
            Edit(served, index, acting)
            for served, terms in self.hidden
            for index, part in enumerate(served.interventions)
            if (acting := tuple(term for term in terms if term[0] in part.partition))
        )

    @cached_property
    def of_lengths(self) -> dict[int, Any]:
        """What is edited in prompts of some lengths; see `prompt_edits`."""
        return {}

    @cached_property
    def hidden_key(self) -> tuple[Any, ...]:
        """What the hidden states of two requests with equal keys are edited with is equal."""
        return tuple((served.fingerprint, terms) for served, terms in self.hidden)

    @cached_property
    def hidden_text(self) -> str:
        """The same as text."""
        return repr(self.hidden_key)

    @cached_property
    def adapter_key(self) -> tuple[Any, ...]:
        """What acts at linear layers in two requests with equal keys is equal."""
        return tuple((served.fingerprint, terms) for served, terms in self.adapters)

    @cached_property
    def fingerprints(self) -> frozenset[str]:
        """The checkpoints that it needs."""
        return frozenset(served.fingerprint for served, _ in (*self.hidden, *self.adapters))

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """The different positions of its interventions, one a bit of a code."""
        return tuple(dict.fromkeys(edit.position for edit in self.edits))

    @cached_property
    def positions_key(self) -> str:
        """The positions as text: text is quick to look up."""
        return repr(self.positions)

    @cached_property
    def after_prompt(self) -> bool:
        """Whether generated tokens may be edited."""
        return any(position.after_prompt for position in self.positions)

    def edits_of(self, code: int) -> Sequence[Edit]:
        """The interventions that act at tokens of a code, in order."""
        acting = {position for bit, position in enumerate(self.positions) if code >> bit & 1}
        return [edit for edit in self.edits if edit.position in acting]

    def codes(self, rank: Ranks, prompt_length: Ranks) -> Codes:
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


def check_values(plan: Plan, composition: Composition) -> None:
    """Refuse what a worker could not compute.

    Args:
        plan: What acts.
        composition: What was asked for, for messages.

    Raises:
        RoadError: where values are not defined at the plan's strengths, or their product is too
            large, and for more positions than a code has bits.
    """
    if len(plan.positions) > MOST_POSITIONS:
        raise RoadError(
            f"composition {quoted(str(composition))} edits at {len(plan.positions)} different "
            f"positions: expected at most {MOST_POSITIONS}"
        )
    largest: dict[Any, float] = {}  # by site
    with torch.no_grad():  # with gradients, values of a part that is in training are not looked at
        for edit in plan.edits:
            part = edit.intervention
            made: Rotation = part.rows(part.strengths([edit.composition]))
            site = part.layer, part.component
            largest[site] = largest.get(site, 1.0) * _largest(made)
        for served, terms in plan.adapters:
            for name, strength in terms:
                adapter = served.adapters_by_name[name]
                adapter.check_strength(strength)
                scale = _largest_scale(adapter, strength)
                largest["adapters"] = largest.get("adapters", 1.0) * scale
    scale = max(largest.values(), default=1.0)
    if scale > _LARGEST:
        raise RoadError(
            f"the scales of composition {quoted(str(composition))} multiply to {scale:g}: expected "
            "smaller strengths"
        )


def _largest_scale(adapter: RoadAdapter, strength: float) -> float:
    """The same of all targets of an adapter, without its rotations, which take a while to make."""
    sizes = adapter.alpha.abs()
    sizes = sizes if adapter.held is None else sizes[adapter.held > 0]
    extreme = float(sizes.max() if strength > 0 else sizes.min())
    return float(max(1.0, extreme**strength) * (1 if adapter.variant == "road_1" else 2))


def _largest(made: Rotation) -> float:
    """How much larger a rotation makes a vector, at most; at least 1."""
    sizes = made.u.abs() if made.v is None else made.u.abs() + made.v.abs()
    return max(1.0, float(sizes.max()))
