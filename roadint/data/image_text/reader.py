"""A model's processor as a reader of conversations: texts, tokens and what stands for images."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from roadint.data.image_text.conversations import Conversation
from roadint.data.prompts import Template, check_template, render
from roadint.errors import RoadError, first_line, quoted


def is_processor(reader: object) -> TypeGuard[ProcessorMixin]:
    """Whether it reads images and text, as AutoProcessor gives it for a vision-language model."""
    return all(hasattr(reader, part) for part in ("tokenizer", "image_processor"))


def tokenizer_of(reader: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a processor, or the tokenizer itself."""
    return reader.tokenizer if is_processor(reader) else reader  # type: ignore[no-any-return]


def parts(
    conversation: Conversation, processor: ProcessorMixin, template: Template
) -> Iterator[tuple[str, str]]:
    """What comes before each answer since the answer before, and the answer.

    Together they are the rendered conversation, without white space after its end.

    Raises:
        RoadError: where the template can't tell them apart.
    """
    if template != "chat":
        yield _framed(conversation, processor, template)
        return
    check_template(template, processor)  # type: ignore[arg-type]  # has a chat template as well
    messages: list[dict[str, Any]] = []
    text = ""
    for index, (question, answer) in enumerate(conversation.turns):
        seen = [{"type": "image"} for _ in conversation.images] if not index else []
        messages.append({"role": "user", "content": [*seen, {"type": "text", "text": question}]})
        before = _rendered(processor, messages, text, prompts=True)
        said = [{"type": "text", "text": answer.strip()}]
        messages.append({"role": "assistant", "content": said})
        after = _rendered(processor, messages, before, prompts=False).rstrip()
        yield before[len(text) :], after[len(before) :]
        text = after


def _framed(
    conversation: Conversation, processor: ProcessorMixin, template: Template
) -> tuple[str, str]:
    if len(conversation.turns) > 1:
        raise RoadError(
            f"template {template!r} is of one question, a conversation has "
            f"{len(conversation.turns)}: expected template 'chat'"
        )
    ((question, answer),) = conversation.turns
    place: Any = getattr(processor, "image_token", "<image>")
    places = f"{place}\n" * len(conversation.images)
    return places + render(template, question, tokenizer_of(processor)), answer


def _rendered(
    processor: ProcessorMixin, messages: list[dict[str, Any]], start: str, *, prompts: bool
) -> str:
    try:
        text = str(
            processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompts)
        )
    except Exception as error:  # whatever the template's own code raises
        raise RoadError(
            f"template 'chat': the processor's chat template fails ({first_line(error)}): "
            "try 'plain'"
        ) from error
    if not text.startswith(start):
        raise RoadError(
            "template 'chat': the processor's chat template writes a turn in another way once the "
            "next one is there, so that its answers can't be told apart: try 'plain'"
        )
    return text


def read_prompt(
    conversation: Conversation, processor: ProcessorMixin, text: str
) -> Mapping[str, Tensor]:
    """The model's inputs for the beginning of a conversation with its images, in one row.

    Args:
        conversation: The conversation.
        processor: The model's.
        text: What is rendered up to the first answer.

    Raises:
        RoadError: where an image can't be read.
    """
    tokenizer = tokenizer_of(processor)
    # As transformers' own apply_chat_template does.
    special = not (tokenizer.bos_token and text.startswith(str(tokenizer.bos_token)))
    images = None
    try:
        if conversation.images:
            images = [_opened(image) for image in conversation.images]
        reading: Any = processor
        found = reading(text=text, images=images, return_tensors="pt", add_special_tokens=special)
    except Exception as error:  # of all kinds, by processor
        raise RoadError(
            f"images {quoted([str(image) for image in conversation.images])} with the prompt "
            f"{quoted(text)} can't be read ({first_line(error)})"
        ) from error
    return dict(found)


def _opened(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    with Image.open(image) as opened:
        return opened.convert("RGB")
