"""Systems take turns, so that a machine that slows down or warms up slows all of them alike."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from roadint.progress import track

Item = TypeVar("Item")


def in_turns(items: Sequence[Item], round_number: int) -> list[Item]:
    """Order a round: another item is the first in each, so that none always follows the same.

    Args:
        items: What takes turns.
        round_number: From 0.

    Returns:
        All items.

    Example:
        >>> in_turns(["a", "b", "c"], 1)
        ['b', 'c', 'a']
    """
    first = round_number % len(items)
    return [*items[first:], *items[:first]]


def rounds(
    items: Sequence[Item], runs: int, description: str, *, quiet: bool
) -> Iterator[tuple[int, Item]]:
    """Go through the items in turns, again and again.

    Args:
        items: What takes turns.
        runs: How many rounds count.
        description: Of the progress bar.
        quiet: Whether there is none.

    Yields:
        The number of the round and an item. Round 0 warms up, and does not count.
    """
    for number in track(range(runs + 1), runs + 1, description, quiet=quiet):
        for item in in_turns(items, number):
            yield number, item
