"""A comparison of answers as plain values, for the endpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.demo.requests import AnswerSettings, Update
from roadint.evaluation.language import language_of


def record(
    prompt: str,
    names: Sequence[str],
    update: Update,
    settings: AnswerSettings,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a comparison.

    Args:
        prompt: The instruction.
        names: The compositions.
        update: Their answers.
        settings: How the answers were generated.
        about: "model", "checkpoint" and what else belongs to the record.

    Returns:
        `about`, with "prompt", "settings", "tokens", "seconds", and "answers": a list of
        {"composition", "text", "language"}.
    """
    answers = [
        {"composition": name, "text": text, "language": language_of(text)}
        for name, text in zip(names, update.texts, strict=True)
    ]
    return {
        **about,
        "prompt": prompt,
        "settings": vars(settings),
        "answers": answers,
        "tokens": update.tokens,
        "seconds": round(update.seconds, 2),
    }
