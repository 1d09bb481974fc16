"""The likelihood of references under compositions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

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
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    compositions: Sequence[Composition],
    *,
    max_length: int = 512,
    max_completion: int = 64,
    batch_size: int = 8,
    quiet: bool = True,
) -> list[list[float]]:
    """The negative log-likelihood of references under compositions.

    A reference is the tokens of an output and, where the tokenizer has one, an end-of-sequence
    token.

    Args:
        road: The model.
        tokenizer: The model's.
        rows: Instructions and references.
        compositions: The compositions.
        max_length: The largest length of prompt and reference, in tokens; longer prompts are cut.
        max_completion: The length at which references are cut, in tokens.
        batch_size: The number of rows in a batch.
        quiet: Whether there is no progress bar.

    Returns:
        For each composition, the value of every row: the mean over its tokens, in nats.

    Raises:
        RoadError: where a row has no text, or is longer than the model reads.
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
    measured: list[list[Tensor]] = [[] for _ in compositions]  # on the device until the end
    batches = by_length([len(example) for example in examples], batch_size)
    for indices in track(batches, len(batches), "likelihood", quiet=quiet):
        batch = moved(collate([examples[index] for index in indices]), road.device)
        for composition, means in zip(compositions, measured, strict=True):
            nll, rows_of_tokens = completion_nll(road, {**batch, "compose": composition})
            means.append(row_means(nll, rows_of_tokens, len(indices)))
    order = torch.tensor([index for indices in batches for index in indices]).argsort()
    return [torch.cat(means).cpu()[order].tolist() for means in measured]
