"""What tests of vLLM draw."""

import random

EVERYTHING = (
    "german + english + tail + head + whole + picked + spoken + loud + start + axes + second"
)
"""All hidden-state edits of one checkpoint."""
COMPOSITIONS = [
    None,
    *EVERYTHING.split(" + "),
    "0.5*german - 0.25*english",
    "german + german@b",
    "0.5*french@b + latin@b",
    "tail + whole + head",
    EVERYTHING,
    "road_1@ad",
    "road_2@ad",
    "road_4@ad",
    "part@ad",
    "halves@ad",
    "queries@ad",
    "gates@ad",
    "0.5*road_1@ad - 2*gates@ad",
    "german + road_1@ad",
    "spoken + latin@b + 0.5*road_2@ad",
]
"""Every name that the engines of these tests serve, and sums of them."""


def prompt_of(draw: random.Random, length: int) -> tuple[int, ...]:
    """A prompt of common tokens of both models."""
    return tuple(draw.randrange(1000, 20000) for _ in range(length))
