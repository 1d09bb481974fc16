"""From rows to tokens to batches, for training and for measuring likelihood alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from roadint.architecture.devices import on_device
from roadint.architecture.properties import positions_of
from roadint.data.prompts import (
    Template,
    completion_ids,
    pad,
    pad_id,
    prompt_ids,
    render,
    with_end,
)
from roadint.data.rows import Row
from roadint.errors import RoadError, quoted


@dataclass(frozen=True)
class Example:
    """One tokenised row.

    Attributes:
        prompt: The token ids of the prompt.
        completion: The token ids of the completion.
        composition: The row's composition; None for the base model.
        first: The first token of the completion that is scored; those before it are given.
    """

    prompt: list[int]
    completion: list[int]
    composition: str | None
    first: int = field(default=0, kw_only=True)

    @property
    def inputs(self) -> list[int]:
        """The tokens that predict something: all but the last."""
        return [*self.prompt, *self.completion[:-1]]

    @property
    def identity(self) -> list[Any]:
        """What makes the row, as plain values."""
        return [self.prompt, self.completion, self.composition, self.first]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def tokenize(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    composition: str | None,
    *,
    template: Template,
    max_length: int,
    max_completion: int | None = None,
    eos: bool = False,
) -> list[Example]:
    """Tokenise rows.

    Args:
        rows: Instructions and outputs.
        tokenizer: The model's tokenizer.
        composition: The composition of all rows.
        template: The template of prompts (`roadint.data.prompts.render`).
        max_length: The largest length of an example, in tokens; longer prompts are cut.
        max_completion: The largest length of a completion, in tokens, which is cut first; half of
            `max_length` by default.
        eos: Whether a completion that was not cut ends with the end-of-sequence token.

    Raises:
        RoadError: where nothing fits or a text has no tokens, or the tokenizer has no
            end-of-sequence token and one is asked for.
    """
    if eos and tokenizer.eos_token_id is None:
        raise RoadError(
            f"{type(tokenizer).__name__} has no end-of-sequence token to end the completions of "
            f"{quoted(composition)} with: expected a tokenizer with one (tokenizer.eos_token = …), "
            "or, where a recipe says eos, eos=[]"
        )
    longest = max_completion or max(1, max_length // 2)
    examples = []
    for row in rows:
        completion = _completion(row, tokenizer, template, eos)[:longest]
        room = max_length - len(completion)
        if room < 1:
            raise RoadError(
                f"a completion of {len(completion)} tokens leaves no room for a prompt in "
                f"max_length={max_length}: expected a larger max_length, "
                "or a smaller max_completion"
            )
        prompt = prompt_ids(tokenizer, template, row["instruction"], room, row.get("input", ""))
        if not prompt:
            raise RoadError(
                f"instruction {quoted(row['instruction'])} has no tokens: expected some text"
            )
        examples.append(Example(prompt, completion, composition))
    return examples


def _completion(
    row: Row, tokenizer: PreTrainedTokenizerBase, template: Template, eos: bool
) -> list[int]:
    prompt = render(template, row["instruction"], tokenizer, row.get("input", ""))
    completion = completion_ids(tokenizer, template, prompt, row["output"])
    if not completion:
        raise RoadError(f"output {quoted(row['output'])} has no tokens: expected some text")
    return with_end(completion, tokenizer) if eos else completion


def check_fits(examples: Sequence[Example], model: nn.Module, fill: int = 0) -> None:
    """Check that a model can read the examples.

    Models that compute their positions (rotary ones) read any length.

    Args:
        examples: At least one.
        model: A transformers model.
        fill: The id of the padding.

    Raises:
        RoadError: where an example has more tokens than the model has positions, or an id is
            outside its embeddings.
    """
    embedded = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    largest = max(max(example.prompt + example.completion) for example in examples)
    for what, index in (("id", largest), ("padding", fill)):
        if index >= embedded:
            raise RoadError(
                f"the tokenizer's {what} {index} is outside the model's {embedded} embeddings: "
                "expected the model's own tokenizer, "
                "or model.resize_token_embeddings(len(tokenizer))"
            )
    positions, longest = positions_of(model), max(len(example.inputs) for example in examples)
    if positions is not None and longest > positions:
        raise RoadError(
            f"a row has {longest} tokens, the model {positions} positions: "
            f"expected max_length={positions} or less"
        )


class Collator:
    """Makes a batch of examples, a row each, padded on the right.

    The last token of a completion predicts nothing, so it is no input. A batch has
    - input_ids and attention_mask, Int[Tensor, "rows columns"];
    - prompt_length, Int[Tensor, " rows"], in tokens;
    - compose, a list of one composition a row;
    - labels, Int[Tensor, " tokens"], the scored ids of all completions, row by row;
    - places, Int[Tensor, "2 tokens"], the row and the column of the token that predicts each label.

    Args:
        tokenizer: The tokenizer, whose padding token fills rows up.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.fill = pad_id(tokenizer)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make one batch."""
        inputs = [example.inputs for example in examples]
        return {
            "input_ids": pad(inputs, self.fill, "right"),
            "attention_mask": pad([[1] * len(row) for row in inputs], 0, "right"),
            **targets(examples, torch.zeros(len(examples), dtype=torch.long)),
        }


def targets(examples: Sequence[Example], starts: Int[Tensor, " rows"]) -> dict[str, Any]:
    """The entries of a batch besides the model's inputs.

    Args:
        examples: One a row.
        starts: For each row, the token of its example with which it begins.

    Returns:
        prompt_length, compose, labels and places, as in `Collator`.
    """
    prompts = torch.tensor([len(example.prompt) for example in examples])
    firsts = torch.tensor([example.first for example in examples])
    counts = torch.tensor([len(example.completion) for example in examples]) - firsts
    rows = torch.arange(len(examples)).repeat_interleave(counts)
    within = torch.arange(len(rows)) - (counts.cumsum(0) - counts - firsts)[rows]
    labels = [token for example in examples for token in example.completion[example.first :]]
    return {
        "prompt_length": prompts,
        "compose": [example.composition for example in examples],
        "labels": torch.tensor(labels),
        "places": torch.stack([rows, (prompts - 1 - starts)[rows] + within]),
    }


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches of examples of similar lengths.

    Args:
        lengths: The lengths of the examples.
        size: The largest size of a batch.

    Returns:
        For each batch, the indices of its examples, the shortest first.

    Examples:
        >>> by_length([5, 1, 4, 2], size=2)
        [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device, which is not waited for."""
    return {
        name: on_device(value, device) if torch.is_tensor(value) else value
        for name, value in batch.items()
    }


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a batch holds for the base model's forward: tokens, masks, images."""
    ours = ("prompt_length", "compose", "labels", "places")
    return {name: value for name, value in batch.items() if name not in ours}


def completion_nll(
    model: nn.Module, batch: dict[str, Any]
) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """The negative log-likelihood of every token of the completions.

    Args:
        model: A RoadModel, or a wrapper of one.
        batch: A batch of a Collator, on the model's device.

    Returns:
        The values in nats, float32, and the tokens' rows.
    """
    inputs = dict(batch)
    scored = inputs.pop("places"), inputs.pop("labels")
    # The model is called, instead of its token_nll: a wrapper for many devices gathers gradients
    # in its own call.
    return model(**inputs, _scored=scored, use_cache=False), scored[0][0]


def row_sums(
    values: Float[Tensor, " tokens"], rows: Int[Tensor, " tokens"], count: int
) -> Float[Tensor, " rows"]:
    """The sum of every row's values.

    Args:
        values: The values of the tokens.
        rows: The rows of the tokens.
        count: How many rows there are.

    Examples:
        >>> row_sums(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist()
        [3.0, 5.0]
    """
    sums = torch.zeros(count, dtype=values.dtype, device=values.device)
    return sums.index_add_(0, rows, values)


def row_means(
    values: Float[Tensor, " tokens"], rows: Int[Tensor, " tokens"], count: int
) -> Float[Tensor, " rows"]:
    """The mean of every row's values; arguments as in `row_sums`."""
    return row_sums(values, rows, count) / row_sums(torch.ones_like(values), rows, count)
