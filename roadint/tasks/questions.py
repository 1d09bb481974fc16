"""Questions of commonsense and arithmetic reasoning, and the answers in texts that a model wrote.

The files are those of LLM-Adapters (appendices C.2, C.3): JSON lists of {"instruction", "output",
"answer"}. An instruction ends with the forms that the answer can have ("Answer format:
answer1/answer2/answer3/answer4"); an arithmetic one asks for a number or a letter.
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
_TRUTHS = ("true", "false")


@dataclass(frozen=True)
class Question:
    """One row of a file.

    Attributes:
        instruction: The instruction, for the template.
        output: The completion in training.
        answer: The right answer.
    """

    instruction: str
    output: str
    answer: str


def load_questions(source: str | Path, limit: int | None = None) -> list[Question]:
    """Read questions.

    Args:
        source: A file, a JSON list or JSON Lines.
        limit: How many questions to take, from the first; all by default.

    Returns:
        The questions.

    Raises:
        RoadError: where the file can't be read or a row lacks something.
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
    instruction = "\n".join(filter(None, (texts["instruction"], texts["input"])))
    output = texts["output"] or texts["answer"]
    return Question(instruction, output.strip(), texts["answer"].strip())


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """A field as text, empty where there is none; outputs and answers may be numbers."""
    value = row.get(name)
    if value is None:
        return ""
    if name in ("output", "answer") and isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise RoadError(f"{where} has a non-text {name!r}: {quoted(value)}; expected text")
    return value


def answered(text: str, answer: str) -> bool:
    """Whether a text gives the right answer.

    The answer of a text is its first choice, its last number, or the letter after "answer is".

    Args:
        text: The text of a model.
        answer: The right answer.

    Examples:
        >>> answered("4 * 3 = 12 kids. The answer is 1,250.", "1250")
        True
        >>> answered("answer3, not answer2", "answer2")
        False
    """
    if _CHOICE.fullmatch(answer):
        named = _CHOICE.search(text)
        return named is not None and _plain(named.group()) == _plain(answer)
    if _LETTER.fullmatch(answer):
        letters = re.findall(r"answer is\W*([A-E])\b", text)[:1] or _LETTER.findall(text)[-1:]
        return letters == [answer]
    wanted, numbers = _number(answer), _NUMBER.findall(text)
    if wanted is None:
        return _plain(answer) in _plain(text)
    last = _number(numbers[-1]) if numbers else None
    return last is not None and math.isclose(last, wanted, rel_tol=0, abs_tol=1e-3)


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question whose choices are not shown: which of them is the likeliest continuation?

    A small model can't name the right one of four numbered answers, but its likelihoods differ.

    Attributes:
        prompt: The text that choices continue.
        choices: The continuations.
        right: The index of the right choice.
    """

    prompt: str
    choices: tuple[str, ...]
    right: int

    @classmethod
    def of(cls, question: Question) -> "ChoiceQuestion":
        """Read the choices that a question numbers.

        Args:
            question: A question that ends with "Answer1: … Answer2: …", or with endings, options or
                solutions; or one whose answer is true or false.

        Returns:
            The question without its choices.

        Raises:
            RoadError: where choices, or the answer, are not numbered, nor true or false.
        """
        body = re.split(r"\s*Answer format:", question.instruction)[0]
        answer = question.answer.lower()
        if answer in _TRUTHS:
            asked = body.partition("question: ")[2].strip() or body.strip()
            truths = tuple(f" {truth}" for truth in _TRUTHS)
            return cls(f"Question: {asked}\nAnswer:", truths, _TRUTHS.index(answer))
        named = re.fullmatch(r"(answer|solution|option|ending)\s?(\d)", answer)
        word = named.group(1) if named else "answer"
        first, *parts = re.split(rf"\b{word}\s?(\d):", body, flags=re.IGNORECASE)
        numbers, choices = parts[::2], [choice.strip() for choice in parts[1::2]]
        if not named or named.group(2) not in numbers or not all(choices):
            raise RoadError(
                f"question {quoted(question.instruction)} with the answer "
                f"{quoted(question.answer)} has no numbered choices to compare: expected "
                "'Answer1: … Answer2: …' and the answer 'answer2', an answer 'true' or 'false', or "
                "task 'commonsense'"
            )
        asked = first.partition(": ")[2].strip() or first.strip()
        prompt = asked if word == "ending" else f"Question: {asked}\nAnswer:"
        right = numbers.index(named.group(2))
        return cls(prompt, tuple(f" {choice}" for choice in choices), right)


def _plain(text: str) -> str:
    return "".join(text.lower().split())


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
