"""An engine's answers beside those of RoadModel, token by token (needs vLLM)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from roadint.engines.vllm.settings import KEY

TOLERANCE = 1e-4
"""By how much log-probabilities of two engines may differ in float32, in nats."""


@dataclass(frozen=True)
class Answer:
    """What an engine answered to one prompt through one composition.

    Args:
        composition: The composition's text; None for the base model.
        prompt: The prompt's tokens.
        tokens: The tokens that the engine generated, greedily.
        logprobs: Their log-probabilities in the engine, in nats.
        expected: Those in RoadModel, after the same tokens; empty until they are known.
        greedy: Which of the tokens RoadModel would choose, too.
    """

    composition: str | None
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    expected: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()

    @property
    def worst(self) -> float:
        """The largest difference of a log-probability."""
        pairs = zip(self.logprobs, self.expected, strict=True)
        return max((abs(found - wanted) for found, wanted in pairs), default=math.inf)

    @property
    def agreeing(self) -> int:
        """How many tokens RoadModel would choose, too."""
        return sum(self.greedy)


def ask_engine(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    compositions: Sequence[str | None],
    new_tokens: int,
) -> list[Answer]:
    """Answer prompts through compositions, all in one batch.

    Args:
        llm: vLLM's LLM, with roadint's checkpoints.
        prompts: The prompts, as tokens.
        compositions: The composition of every prompt.
        new_tokens: How many tokens are generated, greedily, whatever they are.

    Returns:
        One answer a prompt.
    """
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=new_tokens,
            ignore_eos=True,
            logprobs=0,
            extra_args=None if text is None else {KEY: text},
        )
        for text in compositions
    ]
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = [output.outputs[0] for output in llm.generate(asked, params, use_tqdm=False)]
    return [
        Answer(
            text,
            tuple(prompt),
            tuple(output.token_ids),
            tuple(
                steps[token].logprob
                for steps, token in zip(output.logprobs, output.token_ids, strict=True)
            ),
        )
        for text, prompt, output in zip(compositions, prompts, outputs, strict=True)
    ]


@torch.no_grad()
def ask_road_model(road: Any, answers: Sequence[Answer]) -> list[Answer]:
    """What RoadModel expects after the same tokens, one row at a time.

    Args:
        road: The RoadModel, on the same weights, with the same checkpoints.
        answers: An engine's answers.

    Returns:
        The answers with what is expected.
    """
    device = road.model.get_input_embeddings().weight.device
    found = []
    for answer in answers:
        start = len(answer.prompt)
        tokens = torch.tensor([[*answer.prompt, *answer.tokens]], device=device)
        logits = road(
            tokens,
            attention_mask=torch.ones_like(tokens),
            compose=[answer.composition],
            prompt_length=torch.tensor([start], device=device),
        ).logits[0, start - 1 : -1]
        scores = logits.float().log_softmax(dim=-1)
        chosen = tokens[0, start:]
        expected = scores.gather(1, chosen[:, None])[:, 0]
        found.append(
            replace(
                answer,
                expected=tuple(expected.tolist()),
                greedy=tuple((scores.argmax(dim=-1) == chosen).tolist()),
            )
        )
    return found


def largest_difference(first: Sequence[Answer], second: Sequence[Answer]) -> float:
    """By how much log-probabilities of two runs differ, as long as their tokens are the same."""
    worst = 0.0
    for one, other in zip(first, second, strict=True):
        for index, (token, other_token) in enumerate(zip(one.tokens, other.tokens, strict=True)):
            if token != other_token:
                break
            worst = max(worst, abs(one.logprobs[index] - other.logprobs[index]))
    return worst
