"""How likely the references are under each composition."""

from collections.abc import Sequence
from typing import Any

import torch

from roadint.composition import Composition
from roadint.data.collate import Collator, completion_nll, tokenize
from roadint.data.sources import Row
from roadint.model import RoadModel


@torch.no_grad()
def reference_nll(
    road: RoadModel,
    tokenizer: Any,
    rows: Sequence[Row],
    compositions: Sequence[Composition],
    *,
    max_length: int = 512,
    max_completion: int = 64,
    batch_size: int = 8,
) -> list[float]:
    """For each composition, the mean negative log-likelihood of the references in nats a token, over all their tokens.

    The references are cut at `max_completion` tokens and have no end-of-sequence token. Raises RoadError for rows without text.
    """
    examples = tokenize(
        rows, tokenizer, None, template=road.template, max_length=max_length, max_completion=max_completion
    )
    examples.sort(key=len)
    collate = Collator(tokenizer)
    totals, tokens = torch.zeros(len(compositions)), 0
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size])
        batch = {name: value.to(road.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        for index, composition in enumerate(compositions):
            nll, _ = completion_nll(road, {**batch, "compose": composition})
            totals[index] += nll.sum().cpu()
        tokens += len(nll)
    return [float(total) / tokens for total in totals]
