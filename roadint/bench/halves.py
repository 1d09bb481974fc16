"""The two halves of the hidden states that benchmarks train and compose, and RoAd on them."""

import torch
from jaxtyping import Float
from torch import Tensor

from roadint.grammar.composition import Composition

HALVES = {"german": "[0, d/2)", "english": "[d/2, d)"}


def block_strengths(composition: str | None, width: int) -> Float[Tensor, " blocks"]:
    """Write a composition of the halves as the strength of every block.

    Args:
        composition: An expression over "german" and "english".
        width: The width of the hidden states.

    Returns:
        The strengths, 0 where a block does not act.

    Examples:
        >>> block_strengths("german - 0.5*english", 8)
        tensor([ 1.0000,  1.0000, -0.5000, -0.5000])
    """
    terms = dict(Composition.parse(composition, HALVES).terms)
    strengths = torch.ones(width // 2, dtype=torch.float32)
    strengths[: width // 4] = terms.get("german", 0.0)
    strengths[width // 4 :] = terms.get("english", 0.0)
    return strengths
