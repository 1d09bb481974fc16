"""One text for a subspace at several widths, or a refusal."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadint.errors import RoadError
from roadint.grammar.relative import relative_text
from roadint.grammar.subspace import Subspace


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("[0,  d/2)", "[0, d/2)"),
        ((0, "d/2"), "[0, d/2)"),
        (slice(8, None), "[8, d)"),
        (slice(-8, None), "[d - 8, d)"),
        ([slice(0, 4), slice(-4, None)], "[0, 4) | [d - 4, d)"),
        (range(0, 8), "[0, 8)"),
        ([0, 1, 4, 5], "[0, 2) | [4, 6)"),
        (Subspace(((0, 2),)), "[0, 4)"),
    ],
)
def test_the_same_at_each_width(spec: Any, text: str) -> None:
    assert relative_text(spec, [16, 32]) == text
    for width in (16, 32):
        assert Subspace.parse(text, width) == Subspace.parse(spec, width)


def test_what_no_text_says_is_refused() -> None:
    dims_and_the_end = [[0, 1, 4, 5], slice(-4, None)]
    with pytest.raises(RoadError, match="is not the same at widths 32, 64: expected text such as"):
        relative_text(dims_and_the_end, [32, 64])
    with pytest.raises(RoadError, match="outside the width"):
        relative_text(slice(0, 48), [32, 64])


@given(st.lists(st.integers(0, 15), min_size=1, unique=True))
def test_blocks_keep_their_meaning(blocks: list[int]) -> None:
    dims = [dim for block in blocks for dim in (2 * block, 2 * block + 1)]
    assert Subspace.parse(relative_text(dims, [32, 64]), 64) == Subspace.from_dims(dims, 64)
