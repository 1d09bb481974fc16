"""How likely the references are under each composition."""

from collections.abc import Sequence
from typing import Any

import torch

from roadint.data.collate import (
    Collator,
    by_length,
    check_fits,
    completion_nll,
    moved,
    row_means,
    tokenize,
)
from roadint.data.rows import Row
from roadint.grammar.composition import Composition
from roadint.model.road_model import RoadModel
from roadint.progress import track


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
    quiet: bool = True,
) -> list[list[float]]:
    """For each composition and reference, the negative log-likelihood: nats a token.

    A reference is its tokens and its end-of-sequence token, where the tokenizer has one, cut at `max_completion`.
    Raises RoadError for rows without text, or longer than the model reads.
    """
    examples = tokenize(
        rows,
        tokenizer,
        None,
        template=road.template,
        max_length=max_length,
        max_completion=max_completion,
        eos=tokenizer.eos_token_id is not None,
    )
    collate = Collator(tokenizer)
    check_fits(examples, road.model, collate.fill)
    found = torch.zeros(len(compositions), len(examples))
    batches = by_length([len(each) for each in examples], batch_size)
    for chosen in track(batches, len(batches), "likelihood", quiet=quiet):
        batch = moved(collate([examples[index] for index in chosen]), road.device)
        for index, composition in enumerate(compositions):
            nll, row = completion_nll(road, {**batch, "compose": composition})
            found[index, chosen] = row_means(nll, row).cpu()
    return found.tolist()
