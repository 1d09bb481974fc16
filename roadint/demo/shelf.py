"""The checkpoints beside the first one: found in the folder or on the hub, put on the model when a page needs them, and taken off.

The model holds a few at once. One that has gone comes back, under the label that it had, when a page composes with it again; one
that a request waits for or runs with stays.
"""

import itertools
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from roadint.demo.checks import check_text, unexpected
from roadint.demo.engine import Engine
from roadint.errors import RoadError, did_you_mean, first_line, listing, quoted
from roadint.model import checkpoint

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_MOST = 16  # on the model at once
_MOST_BYTES = 256 << 20  # of one from the hub
_LOOK_UPS, _PERIOD = 32, 3600.0  # on the hub, in so many seconds
_DOWNLOADS = 256  # while the app runs
_FILES = (checkpoint.CONFIG, checkpoint.TENSORS)


class Shelf:
    """folder: where checkpoints may be opened. taken: labels that none may have."""

    def __init__(self, folder: Path, taken: Collection[str]) -> None:
        self.folder, self._taken = folder, {*taken, "all", "none"}
        self._labels: dict[
            str, str
        ] = {}  # source → label, for good: there are as many as checkpoints
        self._names: dict[str, list[str]] = {}  # label → what it adds
        self._on: dict[str, None] = {}  # labels on the model, the least recently used one first
        self._used: Counter[str] = Counter()  # by requests that wait or run
        self._hub = _Hub()
        self._books, self._moving = threading.Lock(), threading.Lock()

    def names(self, labels: Sequence[str]) -> list[str]:
        """The names that these checkpoints add."""
        with self._books:
            return [name for label in dict.fromkeys(labels) for name in self._names.get(label, ())]

    def sources(self, labels: Sequence[str]) -> list[str]:
        """What was opened as these labels, as `open` takes it again."""
        with self._books:
            by_label = {label: source for source, label in self._labels.items()}
        found = [by_label[label] for label in labels if label in by_label]
        return [
            str(Path(each).relative_to(self.folder)) if Path(each).is_absolute() else each
            for each in found
        ]

    def found(self) -> list[str]:
        """The checkpoints in the folder, by their path in it."""
        if not self.folder.is_dir():
            return []
        inside = (
            path.parent.relative_to(self.folder)
            for path in sorted(self.folder.rglob(checkpoint.CONFIG))
        )
        return [str(path) for path in inside if checkpoint.WHILE_TRAINING not in path.parts]

    def source(self, name: str) -> str:
        """What a name from a page means: an absolute path below the folder, or a hub id. Raises RoadError for anything else."""
        name = check_text("the checkpoint's name", name, 300).strip()
        if not name:
            raise RoadError("no checkpoint chosen: expected one of the folder, or a hub id")
        path = self._below(name)
        if path is not None and os.path.isdir(path):
            return str(path)
        if path is not None and _HUB_ID.fullmatch(name) and ".." not in name:
            return name
        raise RoadError(
            f"checkpoint {quoted(name)} is not in the allowed folder: {self._expected(name)}"
        )

    def open(self, source: str, engine: Engine) -> str:
        """Put a checkpoint on the model; returns its label, the same for the same one. Raises RoadError, and changes nothing."""
        with self._books:
            label = self._labels.get(source)
        if label is None:
            folder = self._folder_of(
                source
            )  # it may take long, and nobody waits for it but who asked
            with self._moving:
                label = self._labels.get(source) or self._first_time(source, folder, engine)
        else:
            with self.using([label], engine):
                pass
        return label

    @contextmanager
    def using(self, labels: Collection[str], engine: Engine) -> Iterator[None]:
        """Have these checkpoints on the model, inside. Raises RoadError where one is gone for good, or there is no place."""
        with self._books:
            used = [label for label in dict.fromkeys(labels) if label in self._names]
            self._used.update(used)  # from now on none of them goes
        try:
            self._bring(used, engine)
            yield
        finally:
            with self._books:
                self._used.subtract(used)
                self._used += Counter()  # without the zeros

    def _bring(self, labels: Sequence[str], engine: Engine) -> None:
        with self._books:
            away = [label for label in labels if label not in self._on]
            for label in labels:
                if label in self._on:
                    self._on[label] = self._on.pop(label)
            sources = {label: source for source, label in self._labels.items() if label in away}
        for label in away:
            folder = self._folder_of(sources[label])
            with self._moving:
                if label not in self._on:
                    self._put(label, sources[label], folder, engine)

    def _first_time(self, source: str, folder: Path, engine: Engine) -> str:
        label = self._label_for(source)
        self._put(label, source, folder, engine)
        with self._books:
            self._labels[source] = label
        return label

    def _put(self, label: str, source: str, folder: Path, engine: Engine) -> None:
        """On the model, in the place of the one that was not used for longest where there is none; `_moving` is held."""
        try:
            checkpoint.read(
                folder
            )  # what is damaged, or gone, is refused before anybody waits for it
            with engine.lock:
                # Before another one goes: where this one does not fit, nothing has changed.
                engine.road.add_checkpoint(folder, label)
                try:
                    goes = self._goes()
                except RoadError:
                    engine.road.remove_checkpoint(label)
                    raise
                if goes is not None:
                    engine.road.remove_checkpoint(goes)
                names = [name for name in engine.road.names if name.partition("@")[2] == label]
                with self._books:
                    self._on[label], self._names[label] = None, names
        except Exception as error:
            name = self._name_of(source)
            raise RoadError(
                unexpected(error, [(str(folder), name), (str(self.folder), self.folder.name)])
            ) from None

    def _goes(self) -> str | None:
        """The label that makes room; None where there is some. It counts as gone at once. Raises RoadError where all are used."""
        with self._books:
            if len(self._on) < _MOST:
                return None
            goes = next((label for label in self._on if not self._used[label]), None)
            if goes is None:
                raise RoadError(
                    f"{_MOST} checkpoints are in use at this moment: try again in a minute"
                )
            del self._on[goes]
            return goes

    def _below(self, name: str) -> Path | None:
        """The path, if it is one below the folder wherever its links lead, and its files are too."""
        if "\\" in name or ":" in name:  # what Windows takes for another place
            return None
        try:
            path = (self.folder / name).resolve()
            inside = all(
                each.is_relative_to(self.folder)
                for each in (path, *((path / file).resolve() for file in _FILES))
            )
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # names that no file can have, links in a circle
            return None
        return path if inside else None

    def _expected(self, name: str) -> str:
        found = self.found()
        return f"expected one of {listing(found)}, or a hub id{did_you_mean(name, found)}"

    def _folder_of(self, source: str) -> Path:
        if Path(source).is_absolute():
            return Path(source)
        try:
            return self._hub.folder_of(source)
        except RoadError as error:
            raise RoadError(
                f"checkpoint {quoted(source)} is not in the allowed folder, nor from the hub ({error}): {self._expected(source)}"
            ) from None

    def _name_of(self, source: str) -> str:
        path = Path(source)
        return str(path.relative_to(self.folder)) if path.is_absolute() else source

    def _label_for(self, source: str) -> str:
        plain = re.sub(r"\W+", "_", Path(source).name[:60]).strip("_") or "other"
        with self._books:
            taken = self._taken | set(self._labels.values())
        return next(
            each
            for each in itertools.chain([plain], (f"{plain}_{n}" for n in itertools.count(2)))
            if each not in taken
        )


class _Hub:
    """Checkpoints of the hub, that anybody may read, a few at a time; a local folder of the same name is never looked at."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._folders: dict[str, Path] = {}
        self._one = threading.Lock()

    def folder_of(self, name: str) -> Path:
        """A copy. Raises RoadError where there is none, it is too large, or too many were asked for."""
        if name in self._folders:
            return self._folders[name]
        if not self._one.acquire(timeout=30):
            raise RoadError("another one is being fetched from the hub: try again in a minute")
        try:
            if name not in self._folders:
                self._count()
                self._folders[name] = _download(name)
            return self._folders[name]
        finally:
            self._one.release()

    def _count(self) -> None:
        now = time.monotonic()
        while self._times and now - self._times[0] > _PERIOD:
            self._times.popleft()
        if len(self._times) >= _LOOK_UPS or len(self._folders) >= _DOWNLOADS:
            raise RoadError("too many were asked of the hub lately, try again later")
        self._times.append(now)


def _download(name: str) -> Path:
    # token=False: what only this machine's owner may read is none of a visitor's business.
    try:
        about = huggingface_hub.HfApi(token=False).model_info(name, files_metadata=True, timeout=10)
        size = sum(each.size or 0 for each in about.siblings or () if each.rfilename in _FILES)
        if size > _MOST_BYTES:
            raise RoadError(f"that of the hub has {size >> 20} MiB, more than {_MOST_BYTES >> 20}")
    except (RepositoryNotFoundError, GatedRepoError):
        raise RoadError("the hub has none of that name that anybody may read") from None
    except RoadError:
        raise
    except Exception as error:  # without a connection, a copy from before will do
        reason = first_line(error)
    else:
        reason = ""
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(_FILES), token=False)
        )
    except Exception as error:  # whatever the hub, the network or the name's validation raise
        raise RoadError(f"no reachable hub repository ({reason or first_line(error)})") from None
