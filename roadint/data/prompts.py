"""From an instruction to the tokens of a prompt: rendered, tokenised, padded to a batch.

Training and inference share this, so that both see the same tokens up to the prompt's last one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from roadint.errors import RoadError, check_known, first_line, quoted

Template = Literal["plain", "line", "alpaca", "chat"]
Prompt = str | Mapping[str, Any]
"""An instruction, or {"instruction": …, "input": …, "history": …}, of which the first is needed.

The history has the turns before, as pairs of an instruction and its answer. Other fields of a
mapping are not read.
"""
Turns = Sequence[tuple[str, str]]


class Parts(NamedTuple):
    """What a Prompt has: instruction, input ("" for none) and the turns before."""

    instruction: str
    input: str
    history: Turns


# The Alpaca project's two prompts: for instructions without an input, and for those with one.
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, "
    "paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def check_template(template: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Template:
    """Check the name of a template.

    Args:
        template: The name.
        tokenizer: The tokenizer, which has to have a chat template for "chat".

    Returns:
        The name.

    Raises:
        RoadError: where it is unknown, or "chat" and the tokenizer has no chat template.
    """
    check_known("template", template, get_args(Template))
    lacks = tokenizer is not None and not getattr(tokenizer, "chat_template", None)
    if template == "chat" and lacks:
        raise RoadError(
            "template 'chat' needs a tokenizer with a chat template, "
            f"{type(tokenizer).__name__} has none: try 'alpaca'"
        )
    return template  # type: ignore[return-value]


def check_tokenizer(tokenizer: object) -> PreTrainedTokenizerBase:
    """Check a tokenizer, and return it.

    Raises:
        RoadError: where it is no tokenizer.
    """
    if not callable(tokenizer):
        raise RoadError(
            f"tokenizer {quoted(tokenizer)} is none: "
            "expected the model's, as roadint.load returns it"
        )
    return tokenizer  # type: ignore[return-value]  # whatever tokenises


def render(
    template: Template,
    instruction: str,
    tokenizer: PreTrainedTokenizerBase,
    input_text: str = "",
    history: Turns = (),
) -> str:
    r"""The text of a prompt, up to where the answer starts.

    Args:
        template: "plain" leaves the instruction as it is, "line" ends it with a line break (as the
            author of RoAd and pyreft prompt in commonsense reasoning), "alpaca" puts it into the
            Alpaca project's prompt, "chat" into the tokenizer's own chat template.
        instruction: The instruction.
        tokenizer: The tokenizer, which only "chat" uses.
        input_text: The input of the instruction, as in Alpaca. Templates other than "alpaca" put it
            on the line after the instruction.
        history: The turns before, pairs of an instruction and its answer. Templates other than
            "chat" repeat themselves for every turn, with an empty line between.

    Raises:
        RoadError: where the chat template is missing or fails.

    Examples:
        >>> render("plain", "Translate.", tokenizer=None, input_text="Guten Tag")
        'Translate.\nGuten Tag'
        >>> render("line", "And in French?", tokenizer=None, history=[("Say hello.", "Hello!")])
        'Say hello.\nHello!\n\nAnd in French?\n'
    """
    if history and template != "chat":
        turns = (render(template, said, tokenizer) + answer for said, answer in history)
        before = "".join(f"{turn}\n\n" for turn in turns)
        return before + render(template, instruction, tokenizer, input_text)
    if template == "alpaca":
        frame = _ALPACA_INPUT if input_text else _ALPACA
        return frame.format(instruction=instruction, input=input_text)
    content = f"{instruction}\n{input_text}" if input_text else instruction
    if template in ("plain", "line"):
        return content if template == "plain" else f"{content}\n"
    check_template(template, tokenizer)
    try:
        text = _rendered(tokenizer, content, history)
        # Some templates of vision-language models read a list of parts, and leave out a bare text.
        if content.strip() and text == _rendered(tokenizer, "", history):
            text = _rendered(tokenizer, content, history, parts=True)
        return text
    except Exception as error:  # whatever the template's own code raises
        raise RoadError(
            f"template 'chat': the tokenizer's chat template fails ({first_line(error)}): "
            "try 'alpaca'"
        ) from error


def _rendered(
    tokenizer: PreTrainedTokenizerBase, content: str, history: Turns, *, parts: bool = False
) -> str:
    """The chat template's text; `parts` puts every text into a list of parts."""

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if parts else text}

    turns = [
        message(role, text)
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    messages = [*turns, message("user", content)]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    instruction: str,
    max_length: int | None = None,
    input_text: str = "",
    history: Turns = (),
) -> list[int]:
    """The token ids of a prompt.

    Args:
        tokenizer: The model's.
        template: As in `render`.
        instruction: As in `render`.
        max_length: The largest length, in tokens. A longer prompt loses the end of its input, then
            the end of its instruction, never text of the template or of the turns before.
        input_text: As in `render`.
        history: As in `render`.

    Raises:
        RoadError: where instruction or input are no text, or the template alone is too long.
    """
    check_text("prompt", instruction)
    check_text("prompt", input_text)

    def ids_of(instruction: str, input_text: str = "") -> list[int]:
        text = render(template, instruction, tokenizer, input_text, history)
        return _tokenised(tokenizer, template, text)

    ids = ids_of(instruction, input_text)
    if max_length is None or len(ids) <= max_length:
        return ids
    if input_text:
        cut = _cut(tokenizer, input_text, partial(ids_of, instruction), max_length)
        ids = cut or ids_of(instruction)
        if len(ids) <= max_length:
            return ids
    cut = _cut(tokenizer, instruction, ids_of, max_length)
    if cut is None:
        raise RoadError(
            f"max_length {max_length} leaves no room for the instruction: "
            f"template {template!r} alone is longer"
        )
    return cut


def _cut(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    ids_of: Callable[[str], list[int]],
    max_length: int,
) -> list[int] | None:
    """The ids with as much of the beginning of `text` as fits; None where nothing fits."""
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    keep = len(words) - (len(ids_of(text)) - max_length)
    while keep > 0:
        ids = ids_of(str(tokenizer.decode(words[:keep], skip_special_tokens=True)))
        if len(ids) <= max_length:
            return ids
        keep -= len(ids) - max_length
    return None


def completion_ids(
    tokenizer: PreTrainedTokenizerBase, template: Template, prompt: str, completion: str
) -> list[int]:
    """The token ids of a completion after its prompt.

    Both are tokenised together where that does not change the ids of the prompt.

    Args:
        tokenizer: The model's.
        template: The template of the prompt.
        prompt: The rendered prompt.
        completion: The text after the prompt.
    """
    prompt_alone = _tokenised(tokenizer, template, prompt)
    together = _tokenised(tokenizer, template, prompt + completion)
    if together[: len(prompt_alone)] == prompt_alone:
        return together[len(prompt_alone) :]
    return list(tokenizer(completion, add_special_tokens=False)["input_ids"])


def _tokenised(tokenizer: PreTrainedTokenizerBase, template: Template, text: str) -> list[int]:
    # A chat template writes the special tokens itself. Some tokenizers end every text with an
    # end-of-sequence token, which a prompt must not have; one of the text's own stays.
    special, end = template != "chat", tokenizer.eos_token_id
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    if special and len(ids) > 1 and ids[-1] == end:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        if _ends(ids, end) > _ends(own, end):
            ids.pop()
    return ids


def with_end(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A completion's tokens with the end-of-sequence token at the end, once.

    Args:
        ids: The tokens.
        tokenizer: Has an end-of-sequence token.
    """
    end: Any = tokenizer.eos_token_id
    return [*ids] if ids and ids[-1] == end else [*ids, end]


def _ends(ids: Sequence[int], end: int) -> int:
    """How many end-of-sequence tokens a text ends with."""
    return next((count for count, token in enumerate(reversed(ids)) if token != end), len(ids))


def listed_prompts(prompts: Any) -> list[Any]:
    """One prompt, or an iterable of prompts, as a list.

    Args:
        prompts: A Prompt, or an iterable of them, which are not checked.

    Raises:
        RoadError: where it is neither, or empty.
    """
    one = isinstance(prompts, str) or (isinstance(prompts, Mapping) and "instruction" in prompts)
    listed = [prompts] if one else prompts
    if (
        isinstance(listed, (bytes, bytearray, Mapping))
        or not isinstance(listed, Iterable)
        or getattr(listed, "shape", None) == ()
    ):
        raise RoadError(
            f"prompts {quoted(prompts)} are not understood: expected text, or a list of texts"
        )
    listed = list(listed)
    if not listed:
        raise RoadError("no prompts given: expected at least one")
    return listed


def parts_of(prompt: object) -> Parts:
    """The parts of a Prompt.

    Raises:
        RoadError: where it is none, has no text, or its history is no list of pairs of texts.
    """
    if not isinstance(prompt, Mapping):
        check_text("prompt", prompt)
        return Parts(str(prompt), "", ())
    if "instruction" not in prompt:
        raise RoadError(
            f"prompt {quoted(prompt)} has no 'instruction': expected text, or "
            "{'instruction': …, 'input': …}"
        )
    instruction, input_text = prompt["instruction"], prompt.get("input") or ""
    check_text("prompt", instruction)
    check_text("prompt", input_text)
    return Parts(instruction, input_text, _turns(prompt.get("history") or ()))


def _turns(history: object) -> Turns:
    listed: list[Any] = list(history) if isinstance(history, (list, tuple)) else [history]
    for turn in listed:
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise RoadError(
                f"history {quoted(history)} is not understood: expected the turns before, as pairs "
                "of an instruction and its answer, [['Say hello.', 'Hello!']]"
            )
        for text in turn:
            check_text("history", text)
    return [(said, answer) for said, answer in listed]


def prompt_text(prompt: Prompt) -> str:
    r"""A Prompt as one text, for people and for embeddings: an input follows on its own line.

    Examples:
        >>> prompt_text({"instruction": "Translate.", "input": "Guten Tag"})
        'Translate.\nGuten Tag'
    """
    return "\n".join(filter(None, parts_of(prompt)[:2]))


def check_text(what: str, text: object) -> None:
    """Check that a value is a text which a tokenizer can read.

    Args:
        what: The name of the text in the message.
        text: The text.

    Raises:
        RoadError: where it is no text, or holds half a letter (a lone surrogate).
    """
    if not isinstance(text, str):
        raise RoadError(f"{what} {quoted(text)} is {type(text).__name__}: expected text")
    if not is_valid_unicode(text):
        raise RoadError(f"{what} {quoted(text)} has half a letter in it, which no tokenizer reads")


def is_valid_unicode(text: str) -> bool:
    """Whether a text has no half letters (lone surrogates), which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def batch_prompts(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    prompts: Sequence[Prompt],
    max_length: int | None = None,
) -> dict[str, Int[Tensor, "rows columns"]]:
    """The prompts of a batch, padded on the left, as a model's forward takes them.

    Args:
        tokenizer: The model's.
        template: As in `render`.
        prompts: One a row.
        max_length: As in `prompt_ids`.

    Returns:
        "input_ids" and "attention_mask".

    Raises:
        RoadError: as `prompt_ids`, and if a prompt has no tokens.
    """
    ids = []
    for prompt in prompts:
        instruction, input_text, history = parts_of(prompt)
        row = prompt_ids(tokenizer, template, instruction, max_length, input_text, history)
        if not row:
            raise RoadError(f"prompt {quoted(prompt)} has no tokens: expected some text")
        ids.append(row)
    return {
        "input_ids": pad(ids, pad_id(tokenizer), "left"),
        "attention_mask": pad([[1] * len(row) for row in ids], 0, "left"),
    }


def generation_inputs(
    tokenizer: PreTrainedTokenizerBase, template: Template, prompts: Sequence[Prompt]
) -> dict[str, Int[Tensor, "rows columns"]]:
    """A batch of prompts whose padding does not count in penalties of decoding.

    Padding repeats the first token of its row, which penalties count anyway.

    Args:
        tokenizer: As in `batch_prompts`.
        template: As in `batch_prompts`.
        prompts: As in `batch_prompts`.

    Returns:
        "input_ids" and "attention_mask".

    Raises:
        RoadError: as `batch_prompts`.
    """
    batch = batch_prompts(tokenizer, template, prompts)
    kept = batch["attention_mask"].bool()
    first = batch["input_ids"].gather(1, kept.long().argmax(dim=1, keepdim=True))
    return {**batch, "input_ids": torch.where(kept, batch["input_ids"], first)}


def pad(
    rows: Sequence[Sequence[int]], fill: int, side: Literal["left", "right"]
) -> Int[Tensor, "rows columns"]:
    """The rows as one tensor, as wide as the longest.

    Args:
        rows: Ids, in rows of any lengths.
        fill: The id that fills up shorter rows.
        side: The side on which they are filled up.

    Examples:
        >>> pad([[5, 6], [7]], 0, "left").tolist()
        [[5, 6], [0, 7]]
    """
    longest = max(len(row) for row in rows)
    padded = []
    for row in rows:
        padding = [fill] * (longest - len(row))
        padded.append([*padding, *row] if side == "left" else [*row, *padding])
    return torch.tensor(padded, dtype=torch.long)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills up rows: the tokenizer's own, its end-of-sequence id, or else 0."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0
