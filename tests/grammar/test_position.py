"""Which tokens a position selects."""

import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadint.errors import RoadError
from roadint.grammar.position import Position, Tokens, parse_positions

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


@pytest.mark.parametrize(
    ("text", "phase", "indices"),
    [
        ("last", "prompt", [3]),
        ("last(9)", "both", [0, 1, 2, 3]),
        ("first(2)", "prompt", [0, 1]),
        ("at(-1, 1)", "prompt", [1, 3]),
        ("all", "generated", []),
    ],
)
def test_indices_of_a_prompt(text: str, phase: Any, indices: list[int]) -> None:
    assert Position.parse(text, phase).indices(4) == indices
    with pytest.raises(RoadError, match=r"at\(4\) is outside a prompt of 4 tokens"):
        Position.parse("at(4)").indices(4)


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
    with pytest.raises(
        RoadError, match=r"at\(5\) is outside a prompt of 4 tokens: expected indices from -4 to 3"
    ):
        Position.parse("at(5)").check(torch.tensor([6, 4]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last()", "no integers"),
        ("all()", "no integers"),
        ("at(1_0)", "no integers"),
        ("at(0,,2,)", "no integers"),
        ("at(٣)", "no integers"),
        ("at(0x1)", "no integers"),
        (f"last({'9' * 30})", "no integers of at most 999,999,999"),
        ("last(2))", "not understood"),
        ("last\0", "not understood"),
        ("at(" + "0, " * 2_000 + "0)", "expected a tuple of up to 1,000 integers"),
        ("last(" + " " * 20_000, "20,005 characters"),
        (True, "not understood"),
        (b"last", "not understood"),
    ],
)
def test_what_the_grammar_does_not_have_is_refused(text: Any, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Position.parse(text)


def test_a_position_keeps_its_phase_and_another_is_refused() -> None:
    generated = Position("last", phase="generated")
    assert Position.parse(generated) is Position.parse(generated, "generated") is generated
    for given_phase, phase in (
        ("prompt", "generated"),
        ("both", "generated"),
        ("generated", "both"),
    ):
        with pytest.raises(
            RoadError, match=f"has phase '{given_phase}', but phase '{phase}' is asked for"
        ):
            Position.parse(Position("last", phase=given_phase), phase)


def test_positions_made_by_hand_are_checked() -> None:
    assert Position() == Position("last", (1,)) == Position.parse("last")
    assert Position("all") == Position.parse("all")
    assert Position("at", [0, -1]) == Position.parse("at(0, -1)")
    for arguments in (
        *(
            {"kind": "lst"},
            {"kind": ["last"]},
            {"kind": "at"},
            {"kind": "all", "numbers": (1,)},
            {"numbers": (0,)},
            {"numbers": 2},
        ),
        *(
            {"numbers": (True,)},
            {"numbers": (1, 2)},
            {"numbers": (1.0,)},
            {"numbers": (10**30,)},
            {"phase": "always"},
        ),
        {"kind": "at", "numbers": (-1,), "phase": "both"},
    ):
        with pytest.raises(RoadError):
            Position(**arguments)
    nested: Any = [0, 2]
    for _ in range(3000):
        nested = [nested]
    for indices in (
        5,
        [],
        [5],
        [[]],
        [[True]],
        [[0.5]],
        [["last"]],
        "last",
        [[10**30]],
        nested,
        [range(10**30)],
        {0: [1]},
    ):
        with pytest.raises(RoadError, match="not understood"):
            Tokens(indices)
        if indices != "last":
            with pytest.raises(RoadError, match="not understood"):
                parse_positions(indices)
    assert (
        parse_positions([[0, -1], range(2)])
        == Tokens(((0, -1), (0, 1)))
        == parse_positions(Tokens(((0, -1), (0, 1))))
    )


@pytest.mark.parametrize(
    "text", ["last(" + " " * 15_000, " " * 15_000 + "!", "a" * 15_000 + "!", "at(" + "1," * 7_000]
)
def test_time_grows_with_the_length_alone(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(RoadError):
        Position.parse(text)
    assert time.perf_counter() - started < 0.5


PIECES = [
    "last",
    "first",
    "all",
    "at",
    "(",
    ")",
    ",",
    "0",
    "1",
    "-1",
    " ",
    "1_0",
    "9" * 12,
    "\0",
    "x",
    "+1",
    "٣",
    "\n",
    "last(2)",
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text(),
    st.sampled_from(["prompt", "generated", "both"]),
)
def test_any_text_is_a_position_or_refused(text: str, phase: Any) -> None:
    try:
        position = Position.parse(text, phase)
    except RoadError:
        return
    assert Position.parse(str(position), phase) == position


def test_listed_tokens_one_by_one() -> None:
    """Rows of other lengths, in any order and more than once, beside padding and what is generated."""
    listed = Tokens(((3, 0, 0, -1), (-5,), tuple(range(0, 5, 2))))
    lengths = torch.tensor([6, 5, 5])
    rank = torch.arange(9)[None] - torch.tensor([[0], [2], [0]])
    rank = rank.masked_fill(rank < 0, -1)
    edited = listed.edited(rank, lengths)
    for row, (indices, length) in enumerate(zip(listed.indices, lengths.tolist(), strict=True)):
        wanted = {index % length for index in indices}
        assert [int(token) in wanted for token in rank[row]] == edited[row].tolist()


def test_many_listed_tokens() -> None:
    listed = Tokens((tuple(range(0, 40_000, 2)), tuple(range(30_000))))
    edited = listed.edited(torch.arange(40_000).repeat(2, 1), torch.tensor([40_000, 40_000]))
    assert edited.sum(1).tolist() == [20_000, 30_000]
