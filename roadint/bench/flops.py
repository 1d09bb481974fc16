"""The floating-point operations that a training step needs at least."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from roadint.architecture.layers import find_layers, text_config
from roadint.data.collate import Example


def needed_flops(model: PreTrainedModel, skipped: int, rows: Sequence[Example]) -> float:
    """Count the operations of a step with an edit of the last prompt token.

    Only products are counted, two operations each, without padding. A linear map costs 2
    operations a weight and token forward and 2 backward (the weights are frozen); so does the head
    for each scored token. Attention costs 4 operations a channel for each pair of query and key
    forward, 8 backward.

    Args:
        model: The base model.
        skipped: The number of layers below the edit, whose results can be stored.
        rows: The rows of the step.

    Returns:
        Operations.
    """
    config = text_config(model)
    layers = find_layers(model)[1][skipped:]
    weights = sum(parameter.numel() for parameter in layers.parameters() if parameter.ndim == 2)
    head = model.get_output_embeddings().weight.numel()  # type: ignore[no-untyped-call]
    channels = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    total = 0.0
    for row in rows:
        tokens, before = len(row.completion), len(row.prompt) - 1
        pairs = tokens * before + tokens * (tokens + 1) / 2
        total += 4 * tokens * (weights + head) + 12 * pairs * channels * len(layers)
    return total
