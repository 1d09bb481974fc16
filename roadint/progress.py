"""Progress on stderr of long loops and of waiting, so that stdout stays for results."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
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


@contextmanager
def counting(description: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for work that tells how far it is.

    Args:
        description: The text before the bar.
        total: The count at its end.
        quiet: Whether there is no bar.

    Yields:
        A function that takes the count so far.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda count: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.update(task, completed=count)


@contextmanager
def waiting(description: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr that moves, for work of unknown length.

    Args:
        description: The text of the line.
        quiet: Whether there is no line.

    Yields:
        A function that takes what is done at this moment, which the line shows after its text.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    started = time.monotonic()
    with console.status(description) as status:

        def tell(text: str) -> None:
            seconds = time.monotonic() - started
            shown = f"{description}, {seconds:.0f} s: {text}"
            status.update(escape(shown[: max(20, console.width - 4)]))

        yield tell
