"""Slots: nothing that a batch needs goes, the least recently used does, and two never share one."""

from hypothesis import given
from hypothesis import strategies as st

from roadint.engines.vllm.rows.slots import Slots

CAPACITY = 5
BATCHES = st.lists(st.lists(st.integers(0, 12), max_size=CAPACITY, unique=True), max_size=30)


@given(batches=BATCHES, first=st.integers(0, 2))
def test_the_least_recently_used_goes_and_nothing_that_the_batch_needs(
    batches: list[list[int]], first: int
) -> None:
    slots, owner, used = Slots(CAPACITY, first), dict[int, int](), dict[int, int]()
    for number, batch in enumerate(batches):
        found, new = slots.take(iter(batch))
        held = {key: slot for slot, key in owner.items()}
        assert list(found) == batch
        assert new == [key for key in batch if key not in held]
        assert all(found[key] == held[key] for key in batch if key in held)
        gone = [owner[found[key]] for key in new if found[key] in owner]
        assert not gone or len(new) > CAPACITY - len(owner)  # none goes while there is room
        owner |= {found[key]: key for key in batch}
        assert all(first <= slot < first + CAPACITY for slot in owner)
        assert len(owner) == len(set(owner.values())) == len(slots)
        kept = [used[key] for key in owner.values() if key not in batch]
        assert all(key not in batch and used[key] <= min(kept, default=number) for key in gone)
        used |= dict.fromkeys(batch, number)


@given(batches=BATCHES, dropped=st.integers(0, 29))
def test_what_was_dropped_is_new_again(batches: list[list[int]], dropped: int) -> None:
    slots = Slots(CAPACITY)
    for number, batch in enumerate(batches):
        found, new = slots.take(batch)
        if number == dropped:
            slots.drop(new)
            again, new_again = slots.take(batch)
            assert new_again == new
            assert all(again[key] == found[key] for key in batch if key not in new)
            assert len(set(again.values())) == len(batch)


def test_keys_that_are_named_twice() -> None:
    assert Slots(1).take(["a", "a"]) == ({"a": 0}, ["a"])
