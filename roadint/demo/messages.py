"""What the page is told, as JSON: answers, what is inside, the state of the model.

Texts stay texts: the page never reads one as markup.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from roadint.demo.requests import Update
from roadint.evaluation.language import language_of
from roadint.plots.style import COLOURS

_numbers = itertools.count()  # Gradio tells a page only of what is new: no message is like another


def message(kind: str, **values: Any) -> str:
    """A message of one kind.

    Args:
        kind: What the page does with it: "arrival", "status", "answers", "parsed", "inside" or
            "checkpoints".
        **values: What it says.
    """
    return json.dumps({"kind": kind, "number": next(_numbers), **values})


def answers(names: Sequence[str], update: Update, flight: Any) -> str:
    """Answers so far; their languages are told when they are complete.

    Args:
        names: The compositions.
        update: Their answers.
        flight: What the page calls its question.
    """
    return message(
        "answers",
        flight=flight,
        names=list(names),
        texts=update.texts,
        languages=[language_of(text) for text in update.texts] if update.done else None,
        tokens=update.tokens,
        seconds=round(update.seconds, 3),
        done=update.done,
        waiting=update.waiting,
    )


def colours_of(names: Sequence[str]) -> list[str]:
    """A colour a subspace, those of the plots, in order."""
    return [COLOURS[index % len(COLOURS)] for index in range(len(names))]
