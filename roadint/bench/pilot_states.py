"""What both pilot studies of `roadint bench pilot` read: the first token's hidden states."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from roadint.data.collate import Example, by_length, check_fits
from roadint.data.prompts import pad_id
from roadint.tasks.classification import ClassificationTask
from roadint.tasks.task import SCORED_ROWS


def rows_of(
    task: ClassificationTask, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[dict[str, Any]]]:
    """The tokens of a task's rows, by split.

    Args:
        task: The task.
        model: The encoder that is to read them.
        tokenizer: Its tokenizer.

    Raises:
        RoadError: where a row has more tokens than the encoder has positions.
    """
    rows = {split: task.encoded(tokenizer, split) for split in task.splits}
    for encoded in rows.values():
        examples = [Example(row["input_ids"], [], None) for row in encoded]
        check_fits(examples, model, pad_id(tokenizer))
    return rows


@torch.no_grad()
def first_token_states(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]
) -> Float[Tensor, "layers rows width"]:
    """The first token's hidden state after every layer.

    Args:
        model: An encoder, or a RoadModel or another module that is called as one; in evaluation
            mode.
        tokenizer: Its tokenizer.
        rows: Token ids, as `rows_of` returns them.

    Returns:
        In float32, on the CPU, in the order of the rows.
    """
    collate = DataCollatorWithPadding(tokenizer)
    batches = by_length([len(row["input_ids"]) for row in rows], SCORED_ROWS)
    found = []
    for batch in batches:
        inputs = collate([rows[index] for index in batch])
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        del inputs["labels"]
        first = inputs["attention_mask"].argmax(dim=1)  # tokenizers may pad on the left
        states = model(**inputs, output_hidden_states=True).hidden_states[1:]
        every = torch.arange(len(batch), device=first.device)
        found.append(torch.stack([state[every, first].float().cpu() for state in states]))
    order = torch.tensor([index for batch in batches for index in batch])
    return torch.cat(found, dim=1)[:, order.argsort()]
