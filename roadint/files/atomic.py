"""Atomic writing: files are written whole or not at all, also when the process is killed."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from roadint.errors import RoadError

try:
    import fcntl
except ImportError:  # Windows: writers of one folder there wait for nobody
    fcntl = None  # type: ignore[assignment]

Content = bytes | str


def write_whole(path: Path, content: Content) -> None:
    """Write a file so that a reader sees the old one or the new one.

    Args:
        path: The path of the file.
        content: The content of the new file; text is written as UTF-8.
    """
    temporary = _written_beside(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_pair(data: Path, data_content: Content, about: Path, about_content: Content) -> None:
    """Write two files of one folder that belong together.

    `about` identifies `data`, by a digest for example. Both are written before either is replaced,
    so a full disk changes nothing. Until `about` is replaced, the old `data` is one of
    `candidates(data)`: after a kill between the two, `about` identifies it. An error leaves the old
    pair. The next successful write removes what kills have left. Writers of one folder wait for
    each other.

    Args:
        data: The path of the first file.
        data_content: Its new content.
        about: The path of the second.
        about_content: Its new content.
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


def candidates(data: Path) -> Iterator[Path]:
    """The files that may have the content of the first file of a pair.

    Args:
        data: The path of the first file.

    Yields:
        The path itself and, after a kill, files beside it; the second file tells which is right.
    """
    yield data
    yield from sorted(_beside(data))  # only now: a write may have replaced `data` since


@contextmanager
def whole_folder(folder: Path, last: str) -> Iterator[Path]:
    """Fill a new or an empty folder so that it has all of its files or, after an error, none.

    Args:
        folder: The folder.
        last: The name of the file without which readers ignore the others; it is moved last.

    Yields:
        A scratch folder to write to; its files move up at the end.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # Inside, since the folder may be a mount point, which another folder can't replace.
    scratch = folder / f".{secrets.token_hex(4)}"
    moved: list[Path] = []
    try:
        scratch.mkdir()
        yield scratch
        for path in sorted(scratch.iterdir(), key=lambda path: path.name == last):
            moved.append(folder / path.name)
            os.replace(path, moved[-1])
        scratch.rmdir()
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        _remove(moved)
        remove_empty(missing)
        raise


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders while they are empty.

    Args:
        folders: The folders, the innermost first.
    """
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _beside(path: Path) -> list[Path]:
    """The temporary files beside a file."""
    return [beside for beside in path.parent.iterdir() if beside.name.startswith(f".{path.name}.")]


def _written_beside(path: Path, content: Content) -> Path:
    """Write a new file beside `path`, with the permissions of the process's umask."""
    temporary = _name_beside(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o666)
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
    """Give a file a second name: by a link where the file system has them, else by a copy."""
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
    """Restore the old data, or remove the new where there was none."""
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


def hold(file: IO[Any]) -> None:
    """Keep a folder for this process, by an open file in it, where the file system has locks.

    Args:
        file: A file that is never replaced; closing it ends this.

    Raises:
        RoadError: where another process, or another handle of this one, keeps it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RoadError(
            f"another process writes to {Path(file.name).parent}: expected to wait for it, or "
            "another folder"
        ) from None
    except OSError:  # no locks here
        return


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder against other writers in all processes, where the file system has locks."""
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
