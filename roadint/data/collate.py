"""From rows to tokens to batches, for training and for measuring likelihood alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roadint.data.sources import Row
from roadint.errors import RoadError
from roadint.head import token_nll
from roadint.prompt import Template, completion_ids, pad, pad_id, prompt_ids, render

IGNORED = -100  # the label that transformers counts as none


@dataclass(frozen=True)
class Example:
    """One tokenised row and the composition that it goes through."""

    prompt: list[int]
    completion: list[int]
    composition: str | None

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

    eos: whether a completion that was not cut ends with the end-of-sequence token. Raises RoadError where nothing fits.
    """
    examples = []
    for row in rows:
        rendered = render(template, row["instruction"], tokenizer)
        completion = completion_ids(tokenizer, template, rendered, row["output"])
        if eos:
            completion = [*completion, tokenizer.eos_token_id]
        completion = completion[: max_completion or max_length // 2]
        if not completion:
            raise RoadError(f"output {row['output']!r} has no tokens: expected some text")
        prompt = prompt_ids(tokenizer, template, row["instruction"], max_length - len(completion))
        examples.append(Example(prompt, completion, composition))
    return examples


class Collator:
    """Batches of Examples: prompts padded on the left, completions on the right, so that all completions start in column P.

    Returns input_ids, attention_mask, position_ids [rows, P + C], prompt_length [rows], labels [rows, C] (IGNORED where there is
    no token) and compose, a list of compositions.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.fill = pad_id(tokenizer)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make one batch."""
        prompts, completions = [e.prompt for e in examples], [e.completion for e in examples]
        mask = torch.cat(
            [pad([[1] * len(p) for p in prompts], 0, "left"), pad([[1] * len(c) for c in completions], 0, "right")], dim=1
        )
        return {
            "input_ids": torch.cat([pad(prompts, self.fill, "left"), pad(completions, self.fill, "right")], dim=1),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "prompt_length": torch.tensor([len(p) for p in prompts]),
            "labels": pad(completions, IGNORED, "right"),
            "compose": [e.composition for e in examples],
        }


def completion_nll(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of every completion token, in nats, and the row that it belongs to.

    model: a RoadModel (or a wrapper of one). batch: what Collator returns, on its device. Returns [tokens] float32, [tokens] int.
    """
    inputs = dict(batch)
    labels = inputs.pop("labels")
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    before_first = inputs["input_ids"].shape[1] - labels.shape[1] - 1  # a token is predicted one column before its own
    logits = model(**inputs, use_cache=False, logits_at=(rows, columns + before_first)).logits
    return token_nll(logits, labels[rows, columns]), rows
