"""Commonsense and arithmetic reasoning: rows with an answer, and the answer in a text that a model wrote (appendices C.2, C.3).

The files are those of LLM-Adapters: JSON lists of {"instruction", "output", "answer"}; an instruction ends with the forms that
the answer can have ("Answer format: answer1/answer2/answer3/answer4"), an arithmetic one asks for a number or a letter.
A small model can't point at the right one of four numbered answers; it can find one of them likelier than the others: `cloze`.
"""

import math
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from roadint.data.formats import UNREADABLE, json_rows
from roadint.errors import RoadError, first_line, listing, quoted

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?|-?\.\d+")
_CHOICE = re.compile(r"\b(?:true|false|(?:answer|solution|option|ending)\s?\d)\b", re.IGNORECASE)
_LETTER = re.compile(r"\b[A-E]\b")


@dataclass(frozen=True)
class Question:
    """instruction: for the template; output: what training shows; answer: what counts."""

    instruction: str
    output: str
    answer: str


def load_questions(source: str | Path, limit: int | None = None) -> list[Question]:
    """The first `limit` rows of a file, a JSON list or JSON Lines.

    Raises RoadError where it can't be read or a row lacks something.
    """
    name = quoted(str(source))
    try:
        rows = list(islice(json_rows(Path(str(source))), limit))
    except UNREADABLE as error:
        raise RoadError(
            f"questions {name} can't be read ({first_line(error)}): expected a JSON list of rows"
        ) from None
    if not rows:
        raise RoadError(f"questions {name} hold no rows: expected a JSON list")
    return [_question(row, f"row {number} of {name}") for number, row in enumerate(rows)]


def _question(row: Any, where: str) -> Question:
    if not isinstance(row, dict):
        raise RoadError(
            f"{where} is {type(row).__name__}: expected fields 'instruction' and 'answer'"
        )
    texts = {name: _text(row, name, where) for name in ("instruction", "input", "output", "answer")}
    for name in ("instruction", "answer"):
        if not texts[name].strip():
            raise RoadError(f"{where} has no {name!r}: it has {listing(row)}")
    instruction = "\n".join(each for each in (texts["instruction"], texts["input"]) if each)
    return Question(
        instruction, (texts["output"] or texts["answer"]).strip(), texts["answer"].strip()
    )


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """A field as text, empty where there is none; what is answered may be a number."""
    value = row.get(name)
    if value is None:
        return ""
    if name in ("output", "answer") and isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise RoadError(f"{where} has a non-text {name!r}: {quoted(value)}; expected text")
    return value


def answered(text: str, answer: str) -> bool:
    """Whether a text gives the answer: the first choice that it names, the last number, or the letter after "answer is"."""
    if _CHOICE.fullmatch(answer):
        named = _CHOICE.search(text)
        return named is not None and _plain(named.group()) == _plain(answer)
    if _LETTER.fullmatch(answer):
        after = re.search(r"answer is\W*([A-E])\b", text)
        letters = _LETTER.findall(text)
        return (after.group(1) if after else letters[-1] if letters else None) == answer
    wanted, numbers = _number(answer), _NUMBER.findall(text)
    if wanted is None:
        return _plain(answer) in _plain(text)
    return bool(numbers) and math.isclose(
        float(numbers[-1].replace(",", "")), wanted, rel_tol=0, abs_tol=1e-3
    )


@dataclass(frozen=True)
class Cloze:
    """A question whose choices are not shown: which continuation of `prompt` is the likeliest? right: the place of the answer."""

    prompt: str
    choices: tuple[str, ...]
    right: int


def cloze(question: Question) -> Cloze:
    """The choices that a question numbers, each as a continuation. Raises RoadError where it numbers none, or not its answer."""
    named = re.fullmatch(r"(answer|solution|option|ending)\s?(\d)", question.answer.lower())
    body = re.split(r"\s*Answer format:", question.instruction)[0]
    parts = re.split(rf"\b{named.group(1)}\s?(\d):", body, flags=re.IGNORECASE) if named else []
    numbers, choices = parts[1::2], [each.strip() for each in parts[2::2]]
    if not named or named.group(2) not in numbers or not all(choices):
        raise RoadError(
            f"question {quoted(question.instruction)} with the answer {quoted(question.answer)} "
            "has no numbered choices to compare: expected 'Answer1: … Answer2: …' and the answer 'answer2', or task 'commonsense'"
        )
    asked = parts[0].partition(": ")[2].strip() or parts[0].strip()
    prompt = asked if named.group(1) == "ending" else f"Question: {asked}\nAnswer:"
    return Cloze(prompt, tuple(f" {each}" for each in choices), numbers.index(named.group(2)))


def _plain(text: str) -> str:
    return "".join(text.lower().split())


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
