"""From an instruction to the tokens of a prompt: the same in training and at inference, up to the last position."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from roadint.errors import RoadError, check_known, first_line, quoted

Template = Literal["plain", "alpaca", "chat"]

_ALPACA = (  # the Alpaca project's prompt for instructions without an input, and the one for those with
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def check_template(template: str, tokenizer: Any | None = None) -> Template:
    """Return `template`; raise RoadError where it is unknown, or "chat" and the tokenizer has no chat template."""
    check_known("template", template, get_args(Template))
    if (
        template == "chat"
        and tokenizer is not None
        and not getattr(tokenizer, "chat_template", None)
    ):
        raise RoadError(
            f"template 'chat' needs a tokenizer with a chat template, {type(tokenizer).__name__} has none: try 'alpaca'"
        )
    return template  # type: ignore[return-value]


def check_tokenizer(tokenizer: Any) -> None:
    """Raises RoadError for what tokenises nothing."""
    if not callable(tokenizer):
        raise RoadError(
            f"tokenizer {quoted(tokenizer)} is none: expected the model's, as roadint.load returns it"
        )


def render(template: Template, instruction: str, tokenizer: Any, given: str = "") -> str:
    """The text of the prompt, up to where the answer starts.

    given: what the instruction is about, Alpaca's "input"; other templates have it in the line after the instruction.
    """
    if template == "alpaca":
        return (_ALPACA_INPUT if given else _ALPACA).format(instruction=instruction, input=given)
    whole = f"{instruction}\n{given}" if given else instruction
    if template == "plain":
        return whole
    check_template(template, tokenizer)
    messages = [{"role": "user", "content": whole}]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except Exception as error:  # whatever the template's own code raises
        raise RoadError(
            f"template 'chat': the tokenizer's chat template fails ({first_line(error)}): try 'alpaca'"
        ) from error


def prompt_ids(
    tokenizer: Any,
    template: Template,
    instruction: str,
    max_length: int | None = None,
    given: str = "",
) -> list[int]:
    """The prompt's token ids. One that is longer than `max_length` loses the end of its text, never the template's.

    given: as in `render`; it is cut before the instruction is. Raises RoadError for what is no text, and where nothing fits.
    """
    for text in (instruction, given):
        check_text("prompt", text)

    def ids_of(instruction: str, given: str = "") -> list[int]:
        return _ids(tokenizer, template, render(template, instruction, tokenizer, given))

    ids = ids_of(instruction, given)
    if max_length is None or len(ids) <= max_length:
        return ids
    if given:
        ids = _cut(tokenizer, given, lambda part: ids_of(instruction, part), max_length) or ids_of(
            instruction
        )
        if len(ids) <= max_length:
            return ids
    found = _cut(tokenizer, instruction, ids_of, max_length)
    if found is None:
        raise RoadError(
            f"max_length {max_length} leaves no room for the instruction: template {template!r} alone is longer"
        )
    return found


def _cut(
    tokenizer: Any, text: str, ids_of: Callable[[str], list[int]], max_length: int
) -> list[int] | None:
    """The ids with as much of the beginning of `text` as fits; None where nothing of it does."""
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    keep = len(words) - (len(ids_of(text)) - max_length)
    while keep > 0:
        ids = ids_of(tokenizer.decode(words[:keep], skip_special_tokens=True))
        if len(ids) <= max_length:
            return ids
        keep -= len(ids) - max_length
    return None


def listed_prompts(prompts: Any) -> list[Any]:
    """One prompt, or several, as a list. Raises RoadError where there is none, or what is given is no list."""
    listed = [prompts] if isinstance(prompts, str) else prompts
    if (
        isinstance(listed, (bytes, bytearray, Mapping))
        or not isinstance(listed, Iterable)
        or getattr(listed, "shape", None) == ()
    ):
        raise RoadError(
            f"prompts {quoted(prompts)} are not understood: expected text, or a list of texts"
        )
    found = list(listed)
    if not found:
        raise RoadError("no prompts given: expected at least one")
    return found


def check_text(what: str, text: object) -> None:
    """Raises RoadError for what is no text, or holds half a letter (a lone surrogate), which tokenizers don't read."""
    if not isinstance(text, str):
        raise RoadError(f"{what} {quoted(text)} is {type(text).__name__}: expected text")
    if not is_whole(text):
        raise RoadError(f"{what} {quoted(text)} has half a letter in it, which no tokenizer reads")


def is_whole(text: str) -> bool:
    """Whether a text has no half letters (lone surrogates), which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def completion_ids(tokenizer: Any, template: Template, prompt: str, completion: str) -> list[int]:
    """The completion's token ids after that prompt text: tokenised together where this leaves the prompt's own ids as they are."""
    alone = _ids(tokenizer, template, prompt)
    together = _ids(tokenizer, template, prompt + completion)
    if together[: len(alone)] == alone:
        return together[len(alone) :]
    return list(tokenizer(completion, add_special_tokens=False)["input_ids"])


def pad(
    sequences: Sequence[Sequence[int]],
    fill: int,
    side: Literal["left", "right"],
    dtype: torch.dtype = torch.long,
) -> Tensor:
    """[rows, longest]: the sequences, filled up on one side."""
    longest = max(len(sequence) for sequence in sequences)
    rows = []
    for sequence in sequences:
        padding = [fill] * (longest - len(sequence))
        rows.append([*padding, *sequence] if side == "left" else [*sequence, *padding])
    return torch.tensor(rows, dtype=dtype)


def batch_prompts(
    tokenizer: Any, template: Template, instructions: Sequence[str], max_length: int | None = None
) -> dict[str, Tensor]:
    """input_ids and attention_mask, both [rows, longest] and padded on the left, ready for generation."""
    ids = [prompt_ids(tokenizer, template, instruction, max_length) for instruction in instructions]
    for instruction, sequence in zip(instructions, ids, strict=True):
        if not sequence:
            raise RoadError(f"prompt {quoted(instruction)} has no tokens: expected some text")
    return {
        "input_ids": pad(ids, pad_id(tokenizer), "left"),
        "attention_mask": pad([[1] * len(sequence) for sequence in ids], 0, "left"),
    }


def generation_inputs(
    tokenizer: Any, template: Template, instructions: Sequence[str]
) -> dict[str, Tensor]:
    """As `batch_prompts`, with padding that no penalty sees: each row is filled up with a token that it holds anyway."""
    batch = batch_prompts(tokenizer, template, instructions)
    kept = batch["attention_mask"].bool()
    first = batch["input_ids"].gather(1, kept.long().argmax(dim=1, keepdim=True))
    return {**batch, "input_ids": torch.where(kept, batch["input_ids"], first)}


def pad_id(tokenizer: Any) -> int:
    """The id that fills masked places: the tokenizer's own, or else its end-of-sequence id, or 0."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _ids(tokenizer: Any, template: Template, text: str) -> list[int]:
    # A chat template writes the special tokens itself; some tokenizers would end the prompt with an end-of-sequence token.
    ids = list(tokenizer(text, add_special_tokens=template != "chat")["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and template != "chat" and len(ids) > 1:
        ids.pop()
    return ids
