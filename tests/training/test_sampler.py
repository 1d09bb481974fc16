"""Every step sees every composition, in a new order each epoch, with hardly any padding."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadint.data.collate import Example
from roadint.errors import RoadError
from roadint.training.sampler import MixedLengthSampler


def examples(counts: dict[str, int], seed: int = 0) -> list[Example]:
    generator = random.Random(seed)
    long = {"german": 40, "english": 300}
    listed = [
        Example([1] * generator.randint(10, long.get(name, 80)), [1], name)
        for name, count in counts.items()
        for _ in range(count)
    ]
    generator.shuffle(listed)
    return listed


@given(
    st.dictionaries(
        st.sampled_from(["german", "english", "french"]), st.integers(1, 40), min_size=1
    ),
    st.integers(1, 12),
)
def test_every_row_once_an_epoch(counts: dict[str, int], step_rows: int) -> None:
    sampler = MixedLengthSampler(examples(counts), step_rows, seed=0)
    assert sorted(sampler) == list(range(len(sampler)))


def test_steps_are_mixed_and_their_halves_are_not_padded_much() -> None:
    rows = examples({"german": 64, "english": 64})
    order = list(MixedLengthSampler(rows, 8, seed=0))
    tokens = padded = 0
    for start in range(0, len(order), 8):
        step = order[start : start + 8]
        assert sorted(rows[i].composition for i in step) == ["english"] * 4 + ["german"] * 4
        for half in (step[:4], step[4:]):
            tokens += sum(len(rows[i]) for i in half)
            padded += 4 * max(len(rows[i]) for i in half)
    assert padded < 1.15 * tokens


def test_order_depends_on_seed_and_epoch_alone() -> None:
    rows = examples({"german": 30, "english": 20})
    one, other = MixedLengthSampler(rows, 8, seed=1), MixedLengthSampler(rows, 8, seed=1)
    assert list(one) == list(other) == list(one)
    one.set_epoch(3)
    assert list(one) != list(other)
    other.set_epoch(3)
    assert list(one) == list(other)
    assert list(MixedLengthSampler(rows, 8, seed=2)) != list(MixedLengthSampler(rows, 8, seed=1))


@given(
    st.dictionaries(st.text("ab", min_size=1, max_size=3), st.integers(1, 5), min_size=1),
    st.integers(2, 4),
)
def test_processes_have_as_many_rows_each(counts: dict[str, int], processes: int) -> None:
    """Whatever the sizes of data sets, many of which may have fewer rows than there are processes."""
    listed = examples(counts)
    if len(listed) < processes:
        with pytest.raises(RoadError, match=f"{len(listed)} rows for {processes} processes"):
            MixedLengthSampler(listed, 4 * processes, seed=0, processes=processes)
        return
    sampler = MixedLengthSampler(listed, processes, seed=0, processes=processes, micro_batch=1)
    shards = [sampler.shard(process) for process in range(processes)]
    assert sorted(index for shard in shards for index in shard) == list(range(len(listed)))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert {*sampler} == {*range(len(listed))}
