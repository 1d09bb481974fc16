"""Files that are whole or as they were: a reader, or a kill, never meets half of one; and text, read or refused."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from roadint.errors import RoadError, first_line, quoted

try:
    import fcntl
except ImportError:  # Windows: writers of one folder there wait for nobody
    fcntl = None  # type: ignore[assignment]

Content = bytes | str


def write_whole(path: Path, content: Content) -> None:
    """Write beside the file, then move over it: a reader sees the old file or the new one."""
    temporary = _written_beside(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_pair(data: Path, data_content: Content, about: Path, about_content: Content) -> None:
    """Write two files of one folder that belong together, of which `about` tells what `data` is (by its digest, say).

    Both are written before either is replaced, so a full disk changes nothing. Until `about` is replaced, the old `data` lies in
    one of `candidates(data)`: whoever is killed between the two leaves a pair that can be told apart. What failed leaves the old
    pair. What earlier kills left behind goes with the first write that succeeds. Writers of one folder wait for each other.
    """
    made: list[Path] = []  # the new data, the new about, and the old data under a second name
    with _alone(data.parent):
        try:
            made.append(_written_beside(data, data_content))
            made.append(_written_beside(about, about_content))
            if data.is_file():
                made.append(_copy_beside(data))
            os.replace(made[0], data)
            os.replace(made[1], about)
        except BaseException:  # Ctrl-C too, which may come after a rename was done
            if len(made) > 1 and made[1].exists() and not made[0].exists():
                _put_back(data, made)
            _remove(made)
            raise
        _remove([*_beside(data), *_beside(about)])


def make_folder(folder: Path) -> None:
    """Raises RoadError where the folder is not there and can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RoadError(
            f"{quoted(str(folder))} can't be a folder to write to ({first_line(error)}): expected another one"
        ) from None


def candidates(data: Path) -> Iterator[Path]:
    """Where the content of `data` may be: in its place or, after a kill, beside it; `about` tells which one it is."""
    yield data
    yield from sorted(_beside(data))  # looked for only now: a write may have replaced `data` since


@contextmanager
def whole_folder(folder: Path, last: str) -> Iterator[Path]:
    """A scratch folder inside a new or an empty one; its files move up at the end, and after an error there is nothing.

    last: the file without which the others are nothing to a reader; it comes last.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(
        parents=True, exist_ok=True
    )  # it may be a mount point: a folder beside it could not take its place
    scratch = folder / f".{secrets.token_hex(4)}"
    moved: list[Path] = []
    try:
        scratch.mkdir()
        yield scratch
        for path in sorted(scratch.iterdir(), key=lambda each: each.name == last):
            moved.append(folder / path.name)
            os.replace(path, moved[-1])
        scratch.rmdir()
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        _remove(moved)
        remove_empty(missing)
        raise


def remove_empty(folders: Iterable[Path]) -> None:
    """Folders that were made for nothing, the innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _beside(path: Path) -> list[Path]:
    """What lies beside a file on its account."""
    return [each for each in path.parent.iterdir() if each.name.startswith(f".{path.name}.")]


def _written_beside(path: Path, content: Content) -> Path:
    """A new file beside `path`, on the disk; the process's umask says who may read it."""
    temporary = _name_beside(path)
    handle = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _copy_beside(path: Path) -> Path:
    """The file under a second name: a link where the file system has them."""
    copy = _name_beside(path)
    try:
        os.link(path, copy)
    except OSError:
        try:
            shutil.copyfile(path, copy)
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
    return copy


def _put_back(data: Path, made: list[Path]) -> None:
    """The old data in the new one's place, or none where there was none."""
    try:
        if len(made) > 2:
            os.replace(made[2], data)
        else:
            data.unlink(missing_ok=True)
    except OSError:
        del made[2:]  # it stays beside, as after a kill


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other writer of this folder meanwhile, of this process or another, where the file system has locks."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def path_of(what: str, given: Any) -> Path:
    """A path that was given, as `what` ("out"). Raises RoadError for what is none, or blank."""
    if not isinstance(given, (str, os.PathLike)) or not str(given).strip():
        raise RoadError(
            f"{what} {quoted(given)} is no path: expected a folder such as 'runs/german-english'"
        )
    return Path(given)


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
            raise RoadError(
                f"{what} {quoted(str(path))} has over {most:,} bytes: expected a shorter file"
            )
        return content.decode("utf-8-sig")
    except RoadError:
        raise
    except (OSError, ValueError) as error:  # no UTF-8 is a ValueError, and so is a name with NUL
        raise RoadError(
            f"{what} {quoted(str(path))} can't be read ({first_line(error)}): expected a text file in UTF-8"
        ) from None
