"""What both pilot studies of `roadint bench pilot` read: the first token's hidden states."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from roadint.data.collate import by_length
from roadint.tasks.task import SCORED_ROWS


@torch.no_grad()
def first_token_states(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]
) -> Float[Tensor, "layers rows width"]:
    """The first token's hidden state after every layer.

    Args:
        model: An encoder, or a RoadModel or another module that is called as one; in evaluation
            mode.
        tokenizer: Its tokenizer.
        rows: Token ids, as `ClassificationTask.encoded` returns them.

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
