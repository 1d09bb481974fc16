"""A progress bar on stderr for long loops, so that stdout stays for results."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")


def track(items: Iterable[Item], total: int, description: str, *, quiet: bool) -> Iterator[Item]:
    """The items, one after the other, with a bar of how many of `total` are done; without it where quiet."""
    if quiet:
        yield from items
    else:
        console = Console(stderr=True)
        yield from rich_track(
            items,
            description,
            total=total,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
