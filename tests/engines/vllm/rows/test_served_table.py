"""Rows of a table: written when they are new, taken by the tokens that a step turns, no other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadint import RoadError
from roadint.engines.vllm.rows import served_table
from roadint.engines.vllm.rows.places import Places
from roadint.engines.vllm.rows.served_table import ServedTable
from roadint.rotation.rotation import Rotation

CPU, TOKENS, CAPACITY = torch.device("cpu"), 12, 3
PLACES = Places()
PLACES.add("a", 0, 4, 2)
PLACES.add("b", 0, 6, 2)


def rotation(key: int) -> Rotation:
    """The row of a key, which is different for each; 10 turns the first place alone."""
    generator = torch.Generator().manual_seed(key)
    u = torch.randn(5, dtype=torch.complex64, generator=generator)
    v = torch.randn(5, dtype=torch.complex64, generator=generator) if key % 2 else None
    if key == 10:
        u[2:] = 1
    return Rotation(u, v)


def rotations(keys: Sequence[int]) -> Rotation:
    """The rows of several keys; v is there for all of them where one has it."""
    rows = [rotation(key) for key in keys]
    parts = [torch.zeros_like(row.u) if row.v is None else row.v for row in rows]
    v = None if all(row.v is None for row in rows) else torch.stack(parts)
    return Rotation(torch.stack([row.u for row in rows]), v)


def table(mirrored: bool = True) -> ServedTable:
    return ServedTable(PLACES, CAPACITY, TOKENS, mirrored, CPU)


def taken(made: ServedTable, total: int) -> list[Rotation | None]:
    """What each token of a step takes, as a graph that is captured sees it."""
    index = made.index.tolist()
    assert set(index[total:]) <= {-1}
    assert made.v is not None
    return [
        None
        if slot < 0
        else Rotation(torch.view_as_complex(made.u[slot]), torch.view_as_complex(made.v[slot]))
        for slot in index[:total]
    ]


STEPS = st.lists(
    st.lists(st.sampled_from([None, None, *range(11)]), max_size=TOKENS).filter(
        lambda keys: len(set(keys) - {None}) <= CAPACITY
    ),
    max_size=8,
)


@pytest.mark.parametrize("at_once", [5, 1 << 18])
@given(steps=STEPS)
def test_every_token_takes_the_row_of_its_key(at_once: int, steps: list[list[int | None]]) -> None:
    """Rows that are new are made one by one, or all at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_table, "_BLOCKS", at_once)
        check(steps)


def check(steps: list[list[int | None]]) -> None:
    made = table()
    for keys in steps:
        listed = list(dict.fromkeys(key for key in keys if key is not None))
        tokens = np.array([i for i, key in enumerate(keys) if key is not None], dtype=np.int64)
        of_token = np.array([listed.index(key) for key in keys if key is not None], dtype=np.int64)
        made.set_step(tokens, listed, of_token, rotations, len(keys))
        for key, row in zip(keys, taken(made, len(keys)), strict=True):
            assert (key is None) == (row is None)
            if row is not None and key is not None:
                wanted = rotation(key)
                assert row.u.equal(wanted.u)
                assert row.v is not None
                assert row.v.equal(torch.zeros(5) if wanted.v is None else wanted.v)
        assert made.busy == bool(listed)
        assert made.step_tokens.tolist() == tokens.tolist()
        assert made.step_slots.tolist() == made.index[tokens].tolist()
        assert made.step_mirrors == any(key % 2 for key in listed)
        assert made.acts_at(0) == bool(listed)
        assert made.acts_at(1) == any(key != 10 for key in listed)


def test_rows_stay_where_they_are() -> None:
    """Compiled graphs hold the memory of tables."""
    made = table()
    kept = [(part, part.data_ptr()) for part in (made.u, made.v, made.index) if part is not None]
    for key in range(8):
        made.set_step(np.array([key]), [key], np.array([0]), rotations, 9)
        made.clear_step()
        assert made.index.tolist() == [-1] * TOKENS
        assert not made.busy
    assert all(part.data_ptr() == pointer for part, pointer in kept)
    assert made.u is kept[0][0]


def test_a_row_is_made_once() -> None:
    made, asked = table(), list[int]()

    def make(keys: Sequence[int]) -> Rotation:
        asked.extend(keys)
        return rotations(keys)

    for keys in ([0, 2], [2, 4], [0], [6, 8, 0], [4]):
        tokens = np.arange(len(keys))
        made.set_step(tokens, keys, tokens, make, len(keys))
    assert asked == [0, 2, 4, 6, 8, 4]


def test_a_row_that_could_not_be_made_is_not_taken_for_one_later() -> None:
    made, broken = table(), True

    def make(keys: Sequence[int]) -> Rotation:
        if broken and 2 in keys:
            raise RoadError("no number")
        return rotations(keys)

    tokens = np.arange(2)
    with pytest.raises(RoadError):
        made.set_step(tokens, [0, 2], tokens, make, 2)
    broken = False
    made.set_step(tokens, [0, 2], tokens, make, 2)
    found: list[Any] = taken(made, 2)
    assert [row.u.equal(rotation(key).u) for row, key in zip(found, (0, 2), strict=True)] == [
        True
    ] * 2


def test_a_table_without_mirrors() -> None:
    made = table(mirrored=False)
    made.set_step(np.array([3]), [0], np.array([0]), rotations, 5)
    assert made.v is None
    assert torch.view_as_complex(made.u[int(made.index[3])]).equal(rotation(0).u)
    assert not made.step_mirrors


def test_no_places() -> None:
    made = ServedTable(Places(), 1, TOKENS, False, CPU)
    nothing = Rotation(torch.ones(1, 0) + 0j)
    made.set_step(np.array([1]), ["x"], np.array([0]), lambda keys: nothing, 2)
    assert made.u.shape == (1, 0, 2)
