"""The grammar of subspaces, and partitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadint.errors import RoadError
from roadint.subspace import Partition, Subspace


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
    subspace = Subspace.from_dims([dim for block in blocks for dim in (2 * block, 2 * block + 1)], 64)
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
    with pytest.raises(RoadError, match=r"'german' \(\[0, 16\)\) and 'english' \(\[14, 32\)\) overlap at dims \[14, 16\)"):
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
