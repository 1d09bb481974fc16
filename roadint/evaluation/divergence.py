"""How far a composition moves the model on text that has nothing to do with it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from roadint.data.collate import Collator, check_fits, moved, row_means, tokenize
from roadint.data.rows import Row
from roadint.grammar.composition import Composition
from roadint.model.road_model import RoadModel
from roadint.progress import track


@torch.no_grad()
def divergence(
    road: RoadModel,
    tokenizer: Any,
    rows: Sequence[Row],
    compositions: Sequence[Composition],
    *,
    max_completion: int = 64,
    batch_size: int = 4,
    quiet: bool = True,
) -> list[list[float]]:
    """For each composition and row, KL(base model ‖ composition) over the next token: nats a token of the completion.

    The rows are plain text, cut in two: the edit is at its place in the first part (no template), measured is the second.
    """
    examples = tokenize(
        rows,
        tokenizer,
        None,
        template="plain",
        max_length=512,
        max_completion=max_completion,
        eos=False,
    )
    collate = Collator(tokenizer)
    check_fits(examples, road.model, collate.fill)
    found: list[list[float]] = [[] for _ in compositions]
    starts = range(0, len(examples), batch_size)
    for start in track(starts, len(starts), "divergence", quiet=quiet):
        batch = moved(collate(examples[start : start + batch_size]), road.device)
        (row, _), count = batch["places"], len(examples[start : start + batch_size])
        base = _log_probabilities(road, batch, Composition())
        for composition, values in zip(compositions, found, strict=True):
            if composition.terms:
                edited = _log_probabilities(road, batch, composition)
                each = (base.exp() * (base - edited)).sum(-1)
                values += row_means(each, row).tolist()
            else:
                values += [0.0] * count
    return found


def _log_probabilities(road: RoadModel, batch: dict[str, Any], composition: Composition) -> Tensor:
    """[tokens, vocabulary] float32, of the token after each place."""
    rows, columns = batch["places"]
    names = ("input_ids", "attention_mask", "prompt_length")
    output = road(**{name: batch[name] for name in names}, compose=composition, use_cache=False)
    logits: Tensor = output.logits[rows, columns]
    return logits.float().log_softmax(-1)
