"""Checks of users' paths, which raise no errors of the operating system."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roadint.errors import RoadError, first_line, quoted


def path_of(what: str, path: object) -> Path:
    """A path that a user gave.

    Args:
        what: The name of the path in the message, such as "out".
        path: Text or a path.

    Returns:
        The path.

    Raises:
        RoadError: for what is no path, or blank.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path).strip():
        raise RoadError(
            f"{what} {quoted(path)} is no path: expected a folder such as 'runs/german-english'"
        )
    return Path(path)


def is_file(path: Path) -> bool:
    """Whether there is such a file.

    Args:
        path: Any path.

    Returns:
        Whether there is; False for an impossible name (too long, with NUL) and without permission.
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, as `is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def make_folder(folder: Path) -> None:
    """Make a folder, where there is none yet.

    Args:
        folder: The folder; folders above it are made, too.

    Raises:
        RoadError: where it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RoadError(
            f"{quoted(str(folder))} can't be a folder to write to ({first_line(error)}): "
            "expected another one"
        ) from None


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an error of the operating system (read-only, full) into one that names the folder.

    Args:
        folder: Where files are written, whole or not at all.

    Raises:
        RoadError: where they can't be.
    """
    try:
        yield
    except OSError as error:
        raise RoadError(
            f"{quoted(str(folder))} can't be written to ({first_line(error)}): what was in it is "
            "as before"
        ) from error
