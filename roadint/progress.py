"""A progress bar on stderr for long loops, so that stdout stays for results."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")


def track(items: Iterable[Item], total: int, description: str, *, quiet: bool) -> Iterator[Item]:
    """The items in turn, with a bar on stderr that shows how many are done.

    Args:
        items: The items of the loop.
        total: The number of items.
        description: The text before the bar.
        quiet: Whether there is no bar.

    Returns:
        The items, unchanged.
    """
    if quiet:
        yield from items
        return
    console = Console(stderr=True)
    yield from rich_track(
        items,
        description,
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
