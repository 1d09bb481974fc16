"""The grammar of subspaces, and partitions."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadint.errors import RoadError
from roadint.grammar.subspace import Partition, Subspace, check_name
from roadint.interventions.interchange import RoadInterchange
from roadint.interventions.road import RoadIntervention


@pytest.mark.parametrize(
    ("spec", "dims"),
    [
        ("[0, d/2)", range(0, 16)),
        ("[d/2,d)", range(16, 32)),
        ("[ 3d/4 , d )", range(24, 32)),
        ("[3*d/4, d)", range(24, 32)),
        ("[d - 8, d)", range(24, 32)),
        ("[0, 4) | [8, 12)", [*range(0, 4), *range(8, 12)]),
        ("[8, 12) ∪ [0, 4)", [*range(0, 4), *range(8, 12)]),
        ("[0, 4) + [4, 8)", range(0, 8)),
        ((0, 16), range(0, 16)),
        ([(0, 4), (8, 12)], [*range(0, 4), *range(8, 12)]),
        ([[0, 4], [8, 12]], [*range(0, 4), *range(8, 12)]),
        (slice(0, 16), range(0, 16)),
        (slice(16, None), range(16, 32)),
        (range(4, 8), range(4, 8)),
        ([slice(0, 4), "[8, 12)"], [*range(0, 4), *range(8, 12)]),
        ([0, 1], [0, 1]),
        ([0, 1, 6, 7, 2, 3], [0, 1, 2, 3, 6, 7]),
    ],
)
def test_every_form_selects_its_dims(spec: object, dims: object) -> None:
    blocks = Subspace.parse(spec, 32).blocks
    assert [dim for block in blocks for dim in (2 * block, 2 * block + 1)] == list(dims)


@given(st.sets(st.integers(0, 31), min_size=1))
def test_text_round_trip(blocks: set[int]) -> None:
    subspace = Subspace.from_dims(
        [dim for block in blocks for dim in (2 * block, 2 * block + 1)], 64
    )
    assert subspace.blocks == sorted(blocks)
    assert Subspace.parse(str(subspace), 64) == subspace


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("[1, 16)", r"boundary 1 .* cuts the block \[0, 2\).*nearest are 0 and 2"),
        ("[0, d/3)", r"'d/3' .* is 10\.67.* at width 32.*whole number"),
        ("[0, 34)", "boundary 34 .* outside the width: expected 0 to 32"),
        ("[-2, 4)", "boundary -2 .* outside the width"),
        ("[4, 4)", r"range \[4, 4\) .* is empty"),
        ("[8, 4)", "is empty: expected its start below its end"),
        ("[0, d/2]", "half-open ranges"),
        ("0 to 4", "not understood at '0 to 4'"),
        ("[0, 4) [8, 12)", "not understood"),
        ("[0, x)", "boundary 'x' .* not understood"),
        ("[0, d/0)", "boundary 'd/0'"),
        ("", "is empty"),
        ([], "is empty"),
        ("[0, 8) | [4, 12)", r"overlaps itself on dims \[4, 8\)"),
        (slice(0, 8, 2), "step 2"),
        (3.5, "3.5 is not understood"),
        ([0, 2, 5], "cuts the block"),
    ],
)
def test_bad_subspaces_are_named(spec: object, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Subspace.parse(spec, 32)


def test_partition_names_what_overlaps() -> None:
    with pytest.raises(
        RoadError,
        match=r"'german' \(\[0, 16\)\) and 'english' \(\[14, 32\)\) overlap at dims \[14, 16\)",
    ):
        Partition({"german": "[0, d/2)", "english": "[14, d)"}, 32)


def test_partition_need_not_cover_the_width() -> None:
    partition = Partition({"a": "[0, 4)", "b": "[8, 12)"}, 32)
    assert partition.covered() == 4
    expected = torch.zeros(16)
    expected[0:2], expected[4:6] = 0.5, -1.0
    assert torch.equal(partition.strengths({"a": 0.5, "b": -1.0}), expected)


@pytest.mark.parametrize(
    ("subspaces", "message"),
    [
        ({}, "no subspaces given"),
        ({"a b": "[0, 4)"}, "not a plain word"),
        ({"none": "[0, 4)"}, "reserved"),
        ({3: "[0, 4)"}, "plain word"),
    ],
)
def test_bad_partitions_are_named(subspaces: dict, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Partition(subspaces, 32)


def test_every_nth_block_and_other_units() -> None:
    even, odd = Subspace.parse("blocks[::2]", 32), Subspace.parse("blocks[1::2]", 32)
    assert even.blocks == list(range(0, 16, 2))
    assert odd.blocks == list(range(1, 16, 2))
    assert Subspace.parse(str(odd), 32) == odd
    assert str(Subspace.parse("blocks[3:9:3]", 32)) == "[6, 8) | [12, 14)"
    assert Subspace.parse("[0, d/2)", 9 - 1, unit=1).blocks == [0, 1, 2, 3]
    assert Subspace.parse([1, 2, 5], 8, unit=1).blocks == [1, 2, 5]
    assert str(Subspace.parse("[3, 7)", 8, unit=1)) == "[3, 7)"
    with pytest.raises(RoadError, match="step 0"):
        Subspace.parse("blocks[::0]", 32)
    with pytest.raises(RoadError, match="overlap at dims"):
        Partition({"a": "blocks[::2]", "b": "blocks[::3]"}, 32)


@pytest.mark.parametrize(
    ("spec", "unit", "blocks"),
    [
        ((0, "d/2"), 2, range(8)),
        (("d/4", "3d/4"), 2, range(4, 12)),
        ([0, "d/2"], 2, range(8)),
        (slice(0, "d/2"), 2, range(8)),
        (slice(-8, None), 2, range(12, 16)),
        ([(0, "d/4"), ("d/2", 24)], 2, [*range(4), *range(8, 12)]),
        ([Subspace(((0, 2),)), "[8, 12)"], 2, [0, 1, 4, 5]),
        ((np.int64(0), np.int64(4)), 2, [0, 1]),
        ((0, 1), 1, [0]),
        ((3, 7), 1, range(3, 7)),
        ([3, 32], 1, range(3, 32)),  # dim 32 is none of 32
        ([[0, 1, 5], (7, 9)], 1, [0, 1, 5, 7, 8]),
        ("[ - 8 + d , 1*d )", 2, range(12, 16)),
        ("blocks[ 1 : : 5 ]", 2, [1, 6, 11]),
    ],
)
def test_forms_with_one_meaning(spec: Any, unit: int, blocks: Any) -> None:
    assert Subspace.parse(spec, 32, unit).blocks == list(blocks)


def test_a_list_of_two_integers_with_two_meanings_is_refused() -> None:
    message = r"\[3, 7\] has two meanings: expected \(3, 7\) or '\[3, 7\)' for the range, '\[3, 4\) \| \[7, 8\)' for the two dim"
    for spec in ([3, 7], [[3, 7], [9, 12]]):
        with pytest.raises(RoadError, match=message):
            Subspace.parse(spec, 32, unit=1)
    with pytest.raises(RoadError, match="has two meanings"):
        Subspace.parse([0, 1], 32, unit=1)
    with pytest.raises(RoadError, match="cuts the block"):  # a tuple is a range
        Subspace.parse((0, 1), 32)


def test_partitions_are_read_as_pyvene_reads_them() -> None:
    """Two integers are a half-open range, neighbours too; any other number of them are dims."""
    rows = RoadInterchange(
        embed_dim=8, subspace_partition=[[0, 1], [1, 2], [2, 5], [5, 6, 7]]
    ).partition
    assert [subspace.blocks for subspace in rows.values()] == [[0], [1], [2, 3, 4], [5, 6, 7]]
    blocks = RoadIntervention(
        embed_dim=8, subspace_partition=[[0, 2], (2, 4), [4, 5, 6, 7]]
    ).partition
    assert [subspace.blocks for subspace in blocks.values()] == [[0], [1], [2, 3]]
    with pytest.raises(RoadError, match="cuts the block"):
        RoadIntervention(embed_dim=8, subspace_partition=[[0, 1], [1, 2]])
    for partition in (5, "[0, d)", {"a": [0, 2]}, [5]):
        with pytest.raises(RoadError, match="expected"):
            RoadIntervention(embed_dim=8, subspace_partition=partition)


def test_a_subspace_of_another_width_or_unit_is_refused() -> None:
    upper = Subspace.parse("[d/2, d)", 64)
    assert Subspace.parse(upper, 64) == upper
    for spec, message in (
        (upper, r"boundary 64 in subspace .* is outside the width: expected 0 to 32"),
        (Subspace.parse("[16, 64)", 64), "outside the width"),
        (Subspace.parse("[0, d)", 32, 1), "is of units of 1 dims: expected one of units of 2"),
    ):
        with pytest.raises(RoadError, match=message):
            Subspace.parse(spec, 32)
        with pytest.raises(RoadError, match=message):
            Partition({"a": spec}, 32)


@pytest.mark.parametrize(
    "ranges",
    [
        ((5, 2),),
        ((-4, 2),),
        ((0, 4), (2, 6)),
        ((4, 6), (0, 2)),
        ((0, 0),),
        (),
        5,
        "ab",
        ((0, 1.5),),
        ((0,),),
    ],
)
def test_ranges_that_are_none_are_refused(ranges: Any) -> None:
    with pytest.raises(RoadError, match="expected"):
        Subspace(ranges)


def test_ranges_that_touch_become_one() -> None:
    assert Subspace(((0, 2), (2, 5))) == Subspace(((0, 5),)) == Subspace.parse("[0, 10)", 32)
    with pytest.raises(RoadError, match="unit 0"):
        Subspace(((0, 2),), 0)


def nested(depth: int) -> Any:
    spec: Any = [0, 2]
    for _ in range(depth):
        spec = [spec]
    return spec


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "[0, 2 # x)",
            "[0x02, d)",
            "[False, d)",
            "[0_0, d)",
            "[0, 4.0)",
            "[0, (4))",
            "[0, d**1)",
            "[0, d//2)",
            "[0, +4)",
            "[٠, d)",
        ),
        *(
            "[0, \0 2)",
            "[" + "-" * 50_000 + "0, d)",
            "[0, " + "1+" * 5_000 + "1)",
            f"[0, 1{'0' * 400}/3)",
            "[0, dd)",
            "[0, d d)",
        ),
        *(
            "[0, )",
            "[, d)",
            "[0, 2d3)",
            "blocks[-4:]",
            f"blocks[{'1' * 5_000}::1]",
            "blocks[::]",
            "blocks[0:99:2]",
            "rows[::2]",
        ),
        *(
            b"\x00\x04",
            bytearray(4),
            slice(0, 2.5),
            slice("a", "b"),
            slice(0, 34),
            slice(False, 4),
            nested(3_000),
            [[], []],
            [None],
        ),
        *(
            [True, False],
            (0, 10**400),
            (0, 4.0),
            {0: 4},
            {0, 4},
            5,
            None,
            np.arange(4),
            torch.arange(4),
            "[0, 2) | " * 9_000,
        ),
    ],
)
def test_what_the_grammar_does_not_have_is_refused(spec: Any) -> None:
    with pytest.raises(RoadError, match="expected"):
        Subspace.parse(spec, 32)


@pytest.mark.parametrize(
    "dims", [[0.0, 1.0], [True, False], torch.tensor([0.5]), torch.tensor([True, True]), ["0"]]
)
def test_dims_are_integers(dims: Any) -> None:
    with pytest.raises(RoadError, match="is no index"):
        Subspace.from_dims(dims, 8)
    assert Subspace.from_dims(torch.tensor([1, 0]), 8).blocks == [0]


def test_partitions_and_names_are_checked() -> None:
    for subspaces in (None, 5, ["[0, 4)"], "[0, 4)"):
        with pytest.raises(RoadError, match="no subspaces given"):
            Partition(subspaces, 32)
    with pytest.raises(RoadError, match="not a plain word"):
        check_name("a" * 1_000)


@given(st.sets(st.integers(0, 255), min_size=1), st.sampled_from([1, 2]))
def test_text_of_any_blocks_round_trips(blocks: set[int], unit: int) -> None:
    subspace = Subspace.from_dims(
        [unit * block + dim for block in blocks for dim in range(unit)], 512, unit
    )
    assert Subspace.parse(str(subspace), 512, unit) == subspace


def test_the_longest_text_that_a_width_can_need_is_read() -> None:
    width = 8192
    scattered = Subspace.from_dims([0, *range(3, width, 2)], width, 1)
    assert Subspace.parse(str(scattered), width, 1) == scattered


@pytest.mark.parametrize(
    "text",
    [
        "[" + " " * 4_000 + "!",
        "blocks[" + " " * 4_000 + "!",
        " " * 4_000 + "!",
        "[0" * 2_000,
        "[" + "0," * 2_000,
    ],
)
def test_time_grows_with_the_length_alone(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(RoadError):
        Subspace.parse(text, 32)
    assert time.perf_counter() - started < 0.5


PIECES = [
    "[",
    ")",
    "(",
    "]",
    ",",
    "0",
    "4",
    "d",
    "/",
    "2",
    "3d/4",
    "-",
    "+",
    "*",
    " ",
    "|",
    "∪",
    "blocks[",
    "rows[",
    ":",
    "::",
    "1_0",
]
PIECES += ["0x4", "True", "1e3", "\0", "#", "[0, d/2)", "9" * 12, "٣"]


@given(
    st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text(),
    st.sampled_from([(32, 2), (32, 1), (7, 1)]),
)
def test_any_text_is_a_subspace_or_refused(text: str, of: tuple[int, int]) -> None:
    try:
        subspace = Subspace.parse(text, *of)
    except RoadError:
        return
    assert Subspace.parse(str(subspace), *of) == Subspace.parse(subspace, *of) == subspace
