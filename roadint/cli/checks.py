"""Checks before long work: paths to write to, adapters of a checkpoint."""

import os
import tempfile
from pathlib import Path

from roadint.errors import RoadError, check_known, first_line, quoted
from roadint.files.paths import is_file, is_folder


def check_file(option: str, path: Path | None) -> None:
    """Check that a file can be written.

    Args:
        option: The name of the option, for messages.
        path: The file, where there is one.

    Raises:
        RoadError: where it can't be written.
    """
    if path is None:
        return
    if is_folder(path):
        raise RoadError(
            f"{option} {quoted(str(path))} is a folder: expected a file, in it or elsewhere"
        )
    if path.exists() and not is_file(path):
        raise RoadError(f"{option} {quoted(str(path))} is no regular file: expected a new one")
    if not is_folder(path.parent):
        raise RoadError(
            f"{option} {quoted(str(path))[1:-1]}: the folder {quoted(str(path.parent))[1:-1]} "
            "does not exist"
        )
    try:
        if path.exists():
            with path.open("ab"):
                pass
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RoadError(
            f"{option} {quoted(str(path))} can't be written ({first_line(error)})"
        ) from None


def check_picture(option: str, path: Path | None) -> None:
    """Check that a picture can be written, as `check_file`, and that its form is known.

    Args:
        option: The name of the option, for messages.
        path: The file, where there is one.

    Raises:
        RoadError: where it can't be written.
    """
    check_file(option, path)
    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise RoadError(f"{option} {quoted(str(path))[1:-1]}: expected a .png, .svg or .pdf file")


def check_folder(option: str, path: Path, *, new: bool = False) -> None:
    """Check that a folder can be made or written in.

    Args:
        option: The name of the option, for messages.
        path: The folder.
        new: Whether it has to be empty, where it exists.

    Raises:
        RoadError: where that is impossible, or the folder is not empty.
    """
    try:
        lowest = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
        if not lowest.is_dir():
            raise RoadError(
                f"{option} {quoted(str(path))}: {quoted(str(lowest))} is a file, expected a folder"
            )
        if new and lowest == path and any(path.iterdir()):
            raise RoadError(f"{option} {quoted(str(path))} is not empty: expected a new folder")
        _try_names(path, lowest)
    except (OSError, ValueError) as error:
        if isinstance(error, RoadError):
            raise
        raise RoadError(
            f"{option} {quoted(str(path))} can't be a folder of ours ({first_line(error)}): "
            "expected another one"
        ) from None


def _try_names(path: Path, existing: Path) -> None:
    """Try names of this length: the file system may not allow them."""
    with tempfile.TemporaryDirectory(dir=existing, prefix=".roadint.") as scratch:
        longest = max(len(os.fsencode(name)) for name in (path.name, *path.parts))
        (Path(scratch) / ("a" * longest)).touch()
    if "\0" in str(path):
        raise ValueError("no file has NUL in its name")


def check_adapters(checkpoint: str, name: str | None = None) -> None:
    """Check, before a model is loaded, that a checkpoint has adapters.

    Args:
        checkpoint: Folder or hub id.
        name: An adapter that it must have.

    Raises:
        RoadError: where it has no adapters, or not the named one.
    """
    from roadint.checkpoint.reading import folder_of, read

    names = [spec["name"] for spec in read(folder_of(checkpoint)).config.get("adapters", ())]
    if not names:
        raise RoadError(
            f"{quoted(checkpoint)} holds no adapters of linear layers: an edit of hidden states "
            "has no form as weights"
        )
    if name is not None:
        check_known("adapter", name, names)
