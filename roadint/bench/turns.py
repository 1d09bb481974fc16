"""Systems take turns, so that a machine that slows down or warms up slows all of them alike."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from roadint.progress import track

Item = TypeVar("Item")


def in_turns(items: Sequence[Item], round_number: int) -> list[Item]:
    """The order of a round: rounds begin with different items.

    Args:
        items: The items that take turns.
        round_number: The number of the round, from 0.

    Returns:
        All items.

    Examples:
        >>> in_turns(["a", "b", "c"], 1)
        ['b', 'c', 'a']
    """
    first = round_number % len(items)
    return [*items[first:], *items[:first]]


def rounds(
    items: Sequence[Item], runs: int, description: str, *, quiet: bool
) -> Iterator[tuple[int, Item]]:
    """Go through the items in turns, round after round.

    Args:
        items: The items that take turns.
        runs: The number of rounds that count.
        description: The description of the progress bar.
        quiet: Whether there is no bar.

    Yields:
        The number of the round and an item. Round 0 warms up, and does not count.
    """
    for number in track(range(runs + 1), runs + 1, description, quiet=quiet):
        for item in in_turns(items, number):
            yield number, item
