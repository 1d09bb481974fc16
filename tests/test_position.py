"""Which tokens a position selects."""

import pytest
import torch

from roadint.errors import RoadError
from roadint.position import Position

# Two rows of 4 prompt tokens and 3 that follow; the second row has 2 and 3, and padding on the left and on the right.
RANK = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [-1, 0, 1, 2, 3, 4, -1]])
LENGTH = torch.tensor([4, 2])


@pytest.mark.parametrize(
    ("text", "phase", "edited"),
    [
        ("last", "prompt", ["0001000", "0010000"]),
        ("last(3)", "prompt", ["0111000", "0110000"]),
        ("first(1)", "prompt", ["1000000", "0100000"]),
        ("first(9)", "prompt", ["1111000", "0110000"]),
        ("all", "prompt", ["1111000", "0110000"]),
        ("at(0, -1)", "prompt", ["1001000", "0110000"]),
        ("all", "generated", ["0000111", "0001110"]),
        ("last", "generated", ["0000111", "0001110"]),
        ("first(2)", "generated", ["0000110", "0001100"]),
        ("at(1)", "generated", ["0000010", "0000100"]),
        ("last", "both", ["0001111", "0011110"]),
        ("first(1)", "both", ["1000100", "0101000"]),
    ],
)
def test_selected_tokens(text: str, phase: str, edited: list[str]) -> None:
    flags = Position.parse(text, phase).edited(RANK, LENGTH)
    assert ["".join(str(int(flag)) for flag in row) for row in flags] == edited


@pytest.mark.parametrize("text", ["last", "last(3)", "first(2)", "all", "at(0, -1)"])
def test_text_round_trip(text: str) -> None:
    position = Position.parse(text)
    assert str(position) == text
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    ("text", "phase", "message"),
    [
        ("lst", "prompt", "unknown position 'lst'.*did you mean 'last'"),
        ("last(0)", "prompt", "count of at least 1"),
        ("last(1, 2)", "prompt", "one count"),
        ("last(x)", "prompt", "no integers"),
        ("all(2)", "prompt", "takes no numbers"),
        ("at", "prompt", "names no token"),
        ("at(-1)", "generated", "has no end yet"),
        ("last", "always", "unknown phase 'always'"),
        (7, "prompt", "position 7 is not understood"),
    ],
)
def test_bad_positions_are_named(text: object, phase: str, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Position.parse(text, phase)


def test_an_index_outside_the_prompt_is_refused() -> None:
    with pytest.raises(RoadError, match=r"at\(5\) is outside a prompt of 4 tokens: expected indices from -4 to 3"):
        Position.parse("at(5)").check(torch.tensor([6, 4]))
