"""Places lie end to end, and a row is turned further in one of them only."""

import pytest
import torch

from roadint.engines.vllm.rows.places import Place, Places, identity, put
from roadint.rotation.rotation import Rotation
from tests.engines.vllm.helpers import dense_turn


def test_places_lie_end_to_end() -> None:
    places = Places()
    assert places.add("a", 0, 8, 2) == Place(0, 8, 2, first=0)
    assert places.add("b", 4, 6, 6) == Place(4, 6, 6, first=4)
    assert places.add("a", 0, 8, 2) is places.by_key["a"]
    assert list(places.by_key) == ["a", "b"]
    assert (len(places), places.blocks) == (2, 7)
    assert [place.blocks for place in places.by_key.values()] == [slice(0, 4), slice(4, 7)]


def test_the_identity_turns_nothing() -> None:
    assert dense_turn(identity(4), Place(0, 8, 4, 0)).equal(torch.eye(8, dtype=torch.float64))


def drawn(blocks: int, mirrored: bool) -> Rotation:
    u, v = torch.randn(2, blocks, dtype=torch.complex64)
    return Rotation(u, v if mirrored else None)


@pytest.mark.parametrize("mirrored", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("blocks", [slice(None), slice(2, 5), slice(0, 1)])
def test_a_range_is_turned_further(mirrored: tuple[bool, bool], blocks: slice) -> None:
    row, count = drawn(6, mirrored[0]), len(range(6)[blocks])
    factor, whole = drawn(count, mirrored[1]), Place(0, 12, 2, 0)
    before = dense_turn(row, whole)
    further = torch.eye(12, dtype=torch.float64)
    dims = slice(2 * range(6)[blocks].start, 2 * range(6)[blocks].stop)
    further[dims, dims] = dense_turn(factor, Place(0, 2 * count, 2, 0))
    after = put(row, blocks, factor)
    assert (after.v is None) == (mirrored == (False, False))
    torch.testing.assert_close(dense_turn(after, whole), further @ before, rtol=1e-5, atol=1e-5)
