"""Generated answers and what is wrong with them: every prompt through every composition, in mixed batches."""

import re
from collections.abc import Sequence
from typing import Any

from roadint.grammar.composition import Composition
from roadint.model.road_model import RoadModel
from roadint.progress import track


def answer_all(
    road: RoadModel,
    tokenizer: Any,
    prompts: Sequence[str],
    compositions: Sequence[Composition],
    *,
    batch_size: int = 64,
    quiet: bool = True,
    **generation: Any,
) -> list[dict[str, str]]:
    """Every prompt through every composition, in mixed batches: a list of {prompt, composition, text}, prompt by prompt."""
    pairs = [(prompt, composition) for prompt in prompts for composition in compositions]
    starts = range(0, len(pairs), batch_size)
    answers = []
    for start in track(starts, len(starts), "answers", quiet=quiet):
        batch = pairs[start : start + batch_size]
        texts = road.answer(tokenizer, [p for p, _ in batch], [c for _, c in batch], **generation)
        for (prompt, composition), text in zip(batch, texts, strict=True):
            answers.append({"prompt": prompt, "composition": str(composition), "text": text})
    return answers


def is_list(text: str) -> bool:
    """Whether an answer is a numbered list: its lines begin with 1., 2., … (one that was cut after its first item counts)."""
    numbers = [int(number) for number in re.findall(r"^\s*(\d+)[.)]\s", text, flags=re.MULTILINE)]
    return bool(re.match(r"\s*1[.)]\s", text)) and numbers == list(range(1, len(numbers) + 1))


def degeneration(text: str) -> str | None:
    """What is wrong with the form of an answer, or None: "empty" (no letters), "repetition" or "numbers".

    repetition: of ten words or more, fewer than two in five are different, or one character stands ten times in a row.
    numbers: more than a quarter of the characters are digits (an answer that runs away into numbers).
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
