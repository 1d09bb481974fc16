"""How far compositions move the model on text that is unrelated to their training."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from roadint.data.collate import Collator, check_fits, moved, row_means, tokenize
from roadint.data.rows import Row
from roadint.grammar.composition import Composition
from roadint.model.road_model import RoadModel
from roadint.progress import track


@torch.no_grad()
def divergence(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    compositions: Sequence[Composition],
    *,
    max_completion: int = 64,
    batch_size: int = 4,
    quiet: bool = True,
) -> list[list[float]]:
    """KL(base model ‖ composition) over the next token.

    Args:
        road: The model.
        tokenizer: The model's.
        rows: Plain texts in two parts. The first part is edited as a prompt, without a template;
            the second part is measured.
        compositions: The compositions.
        max_completion: The largest length of the second part, in tokens.
        batch_size: The number of rows in a batch.
        quiet: Whether there is no progress bar.

    Returns:
        For each composition, the value of every row, in nats a token of the second part.

    Raises:
        RoadError: where a row has no text, or is longer than the model reads.
    """
    examples = tokenize(
        rows,
        tokenizer,
        None,
        template="plain",
        max_length=512,
        max_completion=max_completion,
    )
    collate = Collator(tokenizer)
    check_fits(examples, road.model, collate.fill)
    measured: list[list[Tensor]] = [[] for _ in compositions]  # on the device until the end
    starts = range(0, len(examples), batch_size)
    for start in track(starts, len(starts), "divergence", quiet=quiet):
        chosen = examples[start : start + batch_size]
        batch = moved(collate(chosen), road.device)
        base = _log_probabilities(road, batch, Composition())
        for composition, means in zip(compositions, measured, strict=True):
            edited = _log_probabilities(road, batch, composition) if composition.terms else base
            kl = (base.exp() * (base - edited)).sum(-1)
            means.append(row_means(kl, batch["places"][0], len(chosen)))
    return [torch.cat(means).tolist() for means in measured]


def _log_probabilities(
    road: RoadModel, batch: dict[str, Any], composition: Composition
) -> Float[Tensor, "tokens vocabulary"]:
    """The log-probabilities of the scored tokens of a batch, in float32."""
    rows, columns = batch["places"]
    names = ("input_ids", "attention_mask", "prompt_length")
    output = road(**{name: batch[name] for name in names}, compose=composition, use_cache=False)
    logits: Tensor = output.logits[rows, columns]
    return logits.float().log_softmax(-1)
