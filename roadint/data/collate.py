"""From rows to tokens to batches, for training and for measuring likelihood alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roadint.architecture.properties import positions_of
from roadint.data.prompts import Template, completion_ids, pad, pad_id, prompt_ids, render
from roadint.data.sources import Row
from roadint.errors import RoadError, quoted


@dataclass(frozen=True)
class Example:
    """One tokenised row and the composition that it goes through."""

    prompt: list[int]
    completion: list[int]
    composition: str | None

    @property
    def inputs(self) -> list[int]:
        """The tokens that predict something: all but the last."""
        return [*self.prompt, *self.completion[:-1]]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def tokenize(
    rows: Sequence[Row],
    tokenizer: Any,
    composition: str | None,
    *,
    template: Template,
    max_length: int,
    max_completion: int | None = None,
    eos: bool = False,
) -> list[Example]:
    """Tokenise rows. A completion is cut at `max_completion` tokens, then the prompt so that both fit in `max_length`.

    eos: whether a completion that was not cut ends with the end-of-sequence token. Raises RoadError where nothing fits, and for
    a tokenizer that has no such token.
    """
    if eos and tokenizer.eos_token_id is None:
        raise RoadError(
            f"{type(tokenizer).__name__} has no end-of-sequence token to end the completions of {quoted(composition)} with: "
            "expected a tokenizer with one (tokenizer.eos_token = …), or, where a recipe says eos, eos=[]"
        )
    examples = []
    for row in rows:
        given = row.get("input", "")
        rendered = render(template, row["instruction"], tokenizer, given)
        completion = completion_ids(tokenizer, template, rendered, row["output"])
        if not completion:
            raise RoadError(f"output {quoted(row['output'])} has no tokens: expected some text")
        if eos:
            completion = [*completion, tokenizer.eos_token_id]
        completion = completion[: max_completion or max(1, max_length // 2)]
        room = max_length - len(completion)
        if room < 1:
            raise RoadError(
                f"a completion of {len(completion)} tokens leaves no room for a prompt in max_length={max_length}: "
                "expected a larger max_length, or a smaller max_completion"
            )
        prompt = prompt_ids(tokenizer, template, row["instruction"], room, given)
        if not prompt:
            raise RoadError(
                f"instruction {quoted(row['instruction'])} has no tokens: expected some text"
            )
        examples.append(Example(prompt, completion, composition))
    return examples


def check_fits(examples: Sequence[Example], model: Any, fill: int = 0) -> None:
    """Raises RoadError where a model can't read the examples: more tokens than it has positions, or ids that it does not embed.

    fill: the id of the padding. Models that compute their positions (rotary ones) read any length.
    """
    embedded = model.get_input_embeddings().weight.shape[0]
    largest = max(max(example.prompt + example.completion) for example in examples)
    for what, index in (("id", largest), ("padding", fill)):
        if index >= embedded:
            raise RoadError(
                f"the tokenizer's {what} {index} is outside the model's {embedded} embeddings: expected the model's own tokenizer, "
                "or model.resize_token_embeddings(len(tokenizer))"
            )
    positions, longest = positions_of(model), max(len(example.inputs) for example in examples)
    if positions is not None and longest > positions:
        raise RoadError(
            f"a row has {longest} tokens, the model {positions} positions: expected max_length={positions} or less"
        )


class Collator:
    """Batches of Examples: each row is a prompt and its completion, padded on the right.

    Returns input_ids and attention_mask [rows, columns], prompt_length [rows], compose (one a row), labels [tokens], the ids of
    all completions row by row, and places [2, tokens], the row and the column of the token that predicts each label. The last
    token of a completion predicts nothing, so it is no input.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.fill = pad_id(tokenizer)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make one batch."""
        inputs = [example.inputs for example in examples]
        return {
            "input_ids": pad(inputs, self.fill, "right"),
            "attention_mask": pad([[1] * len(each) for each in inputs], 0, "right"),
            **targets(examples, torch.zeros(len(examples), dtype=torch.long)),
        }


def targets(examples: Sequence[Example], starts: Tensor) -> dict[str, Any]:
    """What a batch says besides its inputs: prompt_length, compose, labels and places, as `Collator` returns them.

    starts: [rows] int, which token of its example each row begins with.
    """
    prompts = torch.tensor([len(example.prompt) for example in examples])
    counts = torch.tensor([len(example.completion) for example in examples])
    rows = torch.arange(len(examples)).repeat_interleave(counts)
    within = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    return {
        "prompt_length": prompts,
        "compose": [example.composition for example in examples],
        "labels": torch.tensor([token for example in examples for token in example.completion]),
        "places": torch.stack([rows, (prompts - 1 - starts)[rows] + within]),
    }


def row_sums(values: Tensor, rows: Tensor) -> Tensor:
    """[rows] the sum of each row's values. values: [tokens]. rows: [tokens] int, the row of each; no row is without tokens."""
    return torch.zeros(int(rows.max()) + 1, dtype=values.dtype, device=values.device).index_add_(
        0, rows, values
    )


def row_means(values: Tensor, rows: Tensor) -> Tensor:
    """As `row_sums`, the mean of each row's values."""
    return row_sums(values, rows) / rows.bincount()


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches of at most `size` places in `lengths`, of like length together, the shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device."""
    return {
        name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()
    }


def completion_nll(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of every completion token, in nats, and the row that it belongs to.

    model: a RoadModel (or a wrapper of one). batch: what Collator returns, on its device. Returns [tokens] float32, [tokens] int.
    """
    inputs = dict(batch)
    scored = inputs.pop("places"), inputs.pop("labels")
    # A call of the model, not token_nll: a wrapper that spreads it over devices gathers its gradients there.
    return model(**inputs, _scored=scored, use_cache=False), scored[0][0]
