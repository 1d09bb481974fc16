"""Answers in the form that AlpacaEval reads as a model's outputs (Dubois et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.data.prompts import Prompt, parts_of
from roadint.errors import RoadError, quoted
from roadint.evaluation.answers import Answer


def model_outputs(
    prompts: Sequence[Prompt], answers: Sequence[Answer], generator: str
) -> list[dict[str, Any]]:
    """The content of the file for `alpaca_eval --model_outputs`, in the order of the prompts.

    Args:
        prompts: The prompts that were answered.
        answers: One a prompt, all through one composition.
        generator: The name of what answered, by which the leaderboard calls it.

    Returns:
        For each prompt "instruction", "output", "generator" and, where it has them, "input" and
        "dataset".

    Raises:
        RoadError: where the answers are not one a prompt.
    """
    if len(answers) != len(prompts):
        raise RoadError(
            f"{len(answers)} answers to {len(prompts)} prompts: AlpacaEval takes one a prompt, of "
            f"one composition, and there are {quoted(sorted({one.composition for one in answers}))}"
        )
    outputs = []
    for prompt, answer in zip(prompts, answers, strict=True):
        more = prompt if isinstance(prompt, Mapping) else {}
        named = {name: more[name] for name in ("input", "dataset") if more.get(name)}
        row = {"instruction": parts_of(prompt).instruction, "output": answer.text}
        outputs.append({**row, "generator": generator, **named})
    return outputs
