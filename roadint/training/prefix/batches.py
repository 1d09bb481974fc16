"""Batches that hold only what a training step must compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from roadint.data.collate import Collator, Example, targets
from roadint.data.prompts import pad
from roadint.training.prefix.storage import PrefixStorage

Tokens = tuple[tuple[int, ...], tuple[int, ...]]
"""The prompt and the completion of an example."""


@dataclass(frozen=True)
class PrefixBatches:
    """A collator in the place of `Collator`: rows begin at the first token that they need.

    It uses no device, so that other processes may make batches. A batch with an example that is not
    stored is made by the plain collator.

    Args:
        plain: Makes plain batches.
        index: The number of every stored example.
        storage: What is stored.
        skips: Whether a step skips the lowest layers.
        takes_positions: Whether the model's forward takes position_ids.
    """

    plain: Collator
    index: Mapping[Tokens, int]
    storage: PrefixStorage
    skips: bool
    takes_positions: bool

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make one batch, as `Collator` does, but from the first token on that a row needs.

        Args:
            examples: One a row.

        Returns:
            The batch, and as "hidden" and "prefix" what `Storage.for_batch` gives of its rows.
        """
        numbers = [self.index.get(tokens_of(example), -1) for example in examples]
        if min(numbers) < 0:
            return self.plain(examples)
        index, plan = torch.tensor(numbers), self.storage.plan
        starts, lengths = plan.starts[index], plan.lengths[index]
        firsts = zip(examples, starts.tolist(), strict=True)
        ids = pad([example.inputs[start:] for example, start in firsts], self.plain.fill, "right")
        rank = starts[:, None] + torch.arange(ids.shape[1])
        mask = rank < lengths[:, None]
        rank = rank.minimum(lengths[:, None] - 1)
        batch: dict[str, Any] = {"input_ids": ids}
        if self.takes_positions:
            batch["position_ids"] = rank
        if self.skips:
            batch["hidden"] = self.storage.hidden.for_batch(plan.hidden_slots(index, rank))
        if bool(starts.any()):
            longest = starts.max()
            before = torch.arange(int(longest)) - (longest - starts)[:, None]
            # Indices below 0 are padding, on the left.
            slots = plan.prefix_slots(index, before.clamp(min=0))
            batch["prefix"] = self.storage.prefix.for_batch(slots)
            mask = torch.cat([before >= 0, mask], dim=1)
        return {**batch, "attention_mask": mask.long(), **targets(examples, starts)}


def tokens_of(example: Example) -> Tokens:
    """The key of what is stored, which does not depend on the composition."""
    return tuple(example.prompt), tuple(example.completion)
