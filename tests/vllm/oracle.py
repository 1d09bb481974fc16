"""What vLLM is compared with: RoadModel on transformers, in float32, a row at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from roadint import RoadModel
from tests.vllm.engine import Answered, Asked

TOLERANCE = 1e-4  # nats


@dataclass(frozen=True)
class Difference:
    """How an answer differs from RoadModel's, which is given the answer's own tokens.

    Args:
        logprob: The worst difference of a log-probability, in nats.
        regret: By how much a token is less likely than the best one, at worst; 0 where the tokens
            are those of a greedy decode.
    """

    logprob: float
    regret: float


@torch.inference_mode()
def scores(road: RoadModel, asked: Asked, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """The log-probabilities of an answer's tokens, and those of the best tokens there."""
    sequence = torch.tensor([[*asked.prompt, *tokens]])
    logits = road(
        input_ids=sequence,
        attention_mask=torch.ones_like(sequence),
        compose=[composition(asked.compose)],
        prompt_length=torch.tensor([len(asked.prompt)]),
        logits_to_keep=len(tokens) + 1,
        use_cache=False,
    ).logits[0, :-1]
    every = logits.double().log_softmax(-1)
    chosen = every.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return chosen.tolist(), every.amax(-1).tolist()


def composition(compose: Any) -> Any:
    """A request's composition as RoadModel takes it."""
    is_wrapped = isinstance(compose, dict) and set(compose) == {"compose"}
    return compose["compose"] if is_wrapped else compose


def difference(road: RoadModel, asked: Asked, answered: Answered) -> Difference:
    chosen, best = scores(road, asked, answered.tokens)
    pairs = zip(chosen, answered.logprobs, strict=True)
    return Difference(
        max(abs(ours - theirs) for ours, theirs in pairs),
        max(top - ours for top, ours in zip(best, chosen, strict=True)),
    )


def check(
    road: RoadModel, asked: Sequence[Asked], answered: Sequence[Answered], rounding: float = 5.0
) -> None:
    """Every answer is RoadModel's: its greedy tokens, and log-probabilities within TOLERANCE.

    Two tokens that are as likely, within TOLERANCE, may stand for each other.

    Args:
        road: On the same model, in float32.
        asked: The requests.
        answered: The answers.
        rounding: How many times RoadModel's own distance from float64 an answer may be away, where
            that is more than TOLERANCE.
    """
    wrong = []
    for index, (request, answer) in enumerate(zip(asked, answered, strict=True)):
        assert len(answer.tokens) == request.new
        found, allowed = difference(road, request, answer), TOLERANCE
        if rounding and not max(found.logprob, found.regret) <= allowed:
            allowed = max(allowed, rounding * uncertainty(road, request, answer))
        if not max(found.logprob, found.regret) <= allowed:
            wrong.append(
                f"request {index}, {request.compose!r} on {len(request.prompt)} tokens: {found}"
            )
    assert not wrong, "\n".join(wrong)


def uncertainty(road: RoadModel, asked: Asked, answered: Answered) -> float:
    """How far RoadModel's log-probabilities are from those of the same model in float64."""
    single, _ = scores(road, asked, answered.tokens)
    road.model.double()
    try:
        double, _ = scores(road, asked, answered.tokens)
    finally:
        road.model.float()
    return max(abs(one - other) for one, other in zip(single, double, strict=True))


def effect(road: RoadModel, asked: Asked, answered: Answered) -> float:
    """By how much the base model's log-probabilities of an answer differ, at most, in nats."""
    base, _ = scores(road, Asked(asked.prompt, None, asked.new), answered.tokens)
    return max(abs(ours - theirs) for ours, theirs in zip(base, answered.logprobs, strict=True))
