"""From conversations about images to tokens to batches, through the model's own processor."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from roadint.data.collate import Example
from roadint.data.image_text.conversations import Conversation
from roadint.data.image_text.reader import parts, read_prompt, tokenizer_of
from roadint.data.prompts import Template, completion_ids, pad, pad_id, with_end
from roadint.errors import RoadError, quoted

_TOKENS = ("input_ids", "attention_mask")
_KINDS = "token_type_ids"  # how the names end of what a processor says of each token


@dataclass(frozen=True)
class ImageTextExample(Example):
    """One tokenised conversation; its images are opened when a batch is made.

    The prompt goes up to the first answer, the completion from there to the end of the last one.

    Attributes:
        conversation: The conversation.
        text: The text of the prompt.
        answers: Where answers begin and end in the tokens of prompt and completion.
        seen: A digest of the images, as the model sees them.
    """

    conversation: Conversation
    text: str
    answers: tuple[tuple[int, int], ...]
    seen: str

    @property
    def identity(self) -> list[Any]:
        """What makes the row, as plain values: tokens, composition, images."""
        return [*super().identity, self.seen]


def tokenize_conversations(
    conversations: Sequence[Conversation],
    processor: ProcessorMixin,
    composition: str | None,
    *,
    template: Template,
    max_length: int,
    max_completion: int | None = None,
    eos: bool = False,
) -> list[ImageTextExample]:
    """Tokenise conversations; every image is opened once, to know its tokens.

    Args:
        conversations: The rows.
        processor: The model's.
        composition: The composition of all rows.
        template: "chat", the processor's own chat template, or one of `render`'s, for rows of one
            question.
        max_length: The largest length of an example, in tokens; longer ones lose their end.
        max_completion: The largest length from the first answer on.
        eos: Whether answers end with the end-of-sequence token.

    Raises:
        RoadError: where a row has no room for an answer, or can't be read.
    """
    limits = (max_length, max_completion or max_length)
    return [
        _tokenized(conversation, processor, composition, template, limits, eos)
        for conversation in conversations
    ]


def _tokenized(
    conversation: Conversation,
    processor: ProcessorMixin,
    composition: str | None,
    template: Template,
    limits: tuple[int, int],
    eos: bool,
) -> ImageTextExample:
    tokenizer = tokenizer_of(processor)
    ends = eos and tokenizer.eos_token_id is not None
    prompt: list[int] = []
    completion: list[int] = []
    answers = []
    text, first, seen = "", "", ""
    for before, answer in parts(conversation, processor, template):
        if prompt:
            completion += completion_ids(tokenizer, template, text, before)
        else:
            found = read_prompt(conversation, processor, before)
            prompt, first, seen = found["input_ids"][0].tolist(), before, _digest(found)
        start = len(prompt) + len(completion)
        said = completion_ids(tokenizer, template, text + before, answer)
        completion += with_end(said, tokenizer) if ends else said
        answers.append((start, len(prompt) + len(completion)))
        text += before + answer
    most = min(limits[0], len(prompt) + limits[1])
    answers = [(start, min(stop, most)) for start, stop in answers if start < most]
    if not answers:
        raise RoadError(
            f"the prompt {quoted(first)} has {len(prompt)} tokens, with those of its images: "
            f"expected fewer than max_length={limits[0]}"
        )
    completion = completion[: answers[-1][1] - len(prompt)]
    return ImageTextExample(
        prompt, completion, composition, conversation, first, tuple(answers), seen
    )


def _digest(found: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(found.keys() - {*_TOKENS}):
        digest.update(name.encode() + found[name].numpy().tobytes())
    return digest.hexdigest()


class ImageTextCollator:
    """Makes a batch of examples, padded on the right, with their images.

    A batch has the entries of a `Collator`'s, of which labels and places are the answers' alone,
    and what the processor makes of images, such as pixel_values, those of all rows in their order.

    Args:
        processor: The model's.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        self.fill = pad_id(tokenizer_of(processor))

    def __call__(self, examples: Sequence[ImageTextExample]) -> dict[str, Any]:
        """Make one batch."""
        read = [
            read_prompt(example.conversation, self._processor, example.text) for example in examples
        ]
        for example, found in zip(examples, read, strict=True):
            if found["input_ids"][0].tolist() != example.prompt:
                raise RoadError(
                    f"an image of the prompt {quoted(example.text)} has other tokens than before: "
                    "expected the same file while it trains"
                )
        inputs = [example.inputs for example in examples]
        names = dict.fromkeys(name for found in read for name in found if name not in _TOKENS)
        return {
            "input_ids": pad(inputs, self.fill, "right"),
            "attention_mask": pad([[1] * len(row) for row in inputs], 0, "right"),
            **{name: _joined(name, read, inputs) for name in names},
            **_scored(examples),
        }


def _joined(
    name: str, read: Sequence[Mapping[str, Tensor]], inputs: Sequence[Sequence[int]]
) -> Tensor:
    """What a processor says of all rows: of each token, or of each image."""
    if name.endswith(_KINDS):  # 0 is text, as completions are
        kinds = [found[name][0].tolist() for found in read]
        return pad(
            [
                [*row, *[0] * (len(ids) - len(row))][: len(ids)]
                for row, ids in zip(kinds, inputs, strict=True)
            ],
            0,
            "right",
        )
    values = [found[name] for found in read if name in found]
    if len({value.shape[1:] for value in values}) > 1:
        shapes = sorted({tuple(value.shape[1:]) for value in values})
        raise RoadError(
            f"{name} of the rows of a batch have different shapes {shapes}: expected images of one "
            "size, or batch_size=1"
        )
    return torch.cat(values)


def _scored(examples: Sequence[ImageTextExample]) -> dict[str, Any]:
    """The entries of a batch besides the model's inputs."""
    where, labels = [], []
    for row, example in enumerate(examples):
        tokens = [*example.prompt, *example.completion]
        for start, stop in example.answers:
            where += [(row, column - 1) for column in range(start, stop)]
            labels += tokens[start:stop]
    return {
        "prompt_length": torch.tensor([len(example.prompt) for example in examples]),
        "compose": [example.composition for example in examples],
        "labels": torch.tensor(labels),
        "places": torch.tensor(where).T.contiguous(),
    }
