"""Files that are whole or as they were: a reader, or a kill, never meets half of one; and text, read or refused."""

import os
import tempfile
from pathlib import Path

from roadint.errors import RoadError, first_line, quoted


def write_whole(path: Path, content: bytes | str) -> None:
    """Write beside the file, then move over it: a reader sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have (too long, with NUL) is none, nor what may not be looked at."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """As `is_file`, of a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_text(path: Path, what: str, most: int) -> str:
    """A text file of at most `most` bytes, with or without a byte-order mark; `what` ("recipe") is how a message calls it.

    Raises RoadError where it can't be read, is longer, or is no text in UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise RoadError(f"{what} {quoted(str(path))} has over {most:,} bytes: expected a shorter file")
        return content.decode("utf-8-sig")
    except RoadError:
        raise
    except (OSError, ValueError) as error:  # no UTF-8 is a ValueError, and so is a name with NUL
        raise RoadError(f"{what} {quoted(str(path))} can't be read ({first_line(error)}): expected a text file in UTF-8") from None
