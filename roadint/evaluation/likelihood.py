"""How likely references are under each composition."""

from collections.abc import Sequence

import torch
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
        compositions: What the rows go through.
        max_length: Of prompt and reference, in tokens; the prompt is cut.
        max_completion: Of a reference, in tokens; it is cut.
        batch_size: Rows of a batch.
        quiet: Whether there is no progress bar.

    Returns:
        For each composition the value of every row: nats a token, the mean over its tokens.

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
    means = torch.zeros(len(compositions), len(examples))
    batches = by_length([len(example) for example in examples], batch_size)
    for indices in track(batches, len(batches), "likelihood", quiet=quiet):
        batch = moved(collate([examples[index] for index in indices]), road.device)
        for number, composition in enumerate(compositions):
            nll, rows_of_tokens = completion_nll(road, {**batch, "compose": composition})
            means[number, indices] = row_means(nll, rows_of_tokens).cpu()
    values: list[list[float]] = means.tolist()
    return values
