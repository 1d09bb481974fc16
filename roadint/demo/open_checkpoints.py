"""Further checkpoints, which are put on the model when a page needs them, and removed again.

The model has room for a few. A removed checkpoint comes back under the same label when a page
composes with it again; one that a waiting or running request uses is never removed.
"""

import itertools
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.reading import read
from roadint.checkpoint.sources import CheckpointSources
from roadint.demo.about import about
from roadint.demo.answering import Answering
from roadint.demo.failures import message_for_visitors
from roadint.errors import RoadError

_MAX_CHECKPOINTS = 16  # on the model at once, beside the first one


class OpenCheckpoints:
    """Checkpoints that pages have opened, with labels that never change.

    Args:
        sources: The places of checkpoints.
        taken: Labels that are not allowed.
    """

    def __init__(self, sources: CheckpointSources, taken: Collection[str]) -> None:
        self._sources, self._taken = sources, {*taken, "all", "none"}
        self._labels: dict[str, str] = {}  # source → the label of what it held when last opened
        self._origins: dict[str, tuple[str, str]] = {}  # label → source, and content's digest
        self._names: dict[str, list[str]] = {}  # label → the subspaces that it adds
        self._about: dict[str, str] = {}  # label → a line about it
        self._on_model: dict[str, None] = {}  # labels, the least recently used one first
        self._uses: Counter[str] = Counter()  # label → requests that wait or run with it
        self._records, self._moving = threading.Lock(), threading.Lock()

    def names(self, labels: Sequence[str]) -> list[str]:
        """The subspaces that these checkpoints add, as NAME@LABEL."""
        with self._records:
            return [name for label in dict.fromkeys(labels) for name in self._names.get(label, ())]

    def told(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """What is known of checkpoints.

        Returns:
            A list of {"label", "name", "origin", "names", "about"}, where "origin" is what was
            opened, as `source_of` takes it again.
        """
        with self._records:
            known = [label for label in dict.fromkeys(labels) if label in self._origins]
            return [
                {
                    "label": label,
                    "name": label,
                    "origin": self._sources.name_of(self._origins[label][0]),
                    "names": self._names[label],
                    "about": self._about[label],
                }
                for label in known
            ]

    def open(self, source: str, answering: Answering) -> str:
        """Put a checkpoint on the model.

        Args:
            source: What `CheckpointSources.source_of` returned.
            answering: Where answers come from.

        Returns:
            The label, the same for the same checkpoint; one that was trained again since it was
            opened gets another.

        Raises:
            RoadError: where it is damaged or does not fit the model; nothing changes.
        """
        path = self._sources.path_of(source)  # may take long; nobody else waits for it
        with self._moving:
            saved, label = self._read(source, path), self._labels.get(source)
            if label is None or saved.config["sha256"] != self._origins[label][1]:
                return self._open_first_time(source, path, saved, answering)
        with self.using([label], answering):
            return label

    @contextmanager
    def using(self, labels: Collection[str], answering: Answering) -> Iterator[None]:
        """Keep checkpoints on the model inside of a context.

        Args:
            labels: The checkpoints; labels that were never opened are ignored.
            answering: Where answers come from.

        Raises:
            RoadError: where one can't be read any more, or the model has no room.
        """
        with self._records:
            used = [label for label in dict.fromkeys(labels) if label in self._names]
            self._uses.update(used)  # from now on none of them goes
        try:
            self._bring_back(used, answering)
            yield
        finally:
            with self._records:
                self._uses.subtract(used)
                self._uses += Counter()  # drops the zeros

    def _bring_back(self, labels: Sequence[str], answering: Answering) -> None:
        with self._records:
            away = [label for label in labels if label not in self._on_model]
            for label in labels:
                if label in self._on_model:
                    self._on_model[label] = self._on_model.pop(label)
        for label in away:
            source, digest = self._origins[label]
            path = self._sources.path_of(source)
            with self._moving:
                if label in self._on_model:
                    continue
                saved = self._read(source, path)
                if saved.config["sha256"] != digest:
                    raise RoadError(
                        f"{self._sources.name_of(source)} was trained again since it was opened as "
                        f"{label!r}: close it and open it again"
                    )
                self._add(label, source, path, saved, answering)

    def _open_first_time(
        self, source: str, path: Path, saved: Checkpoint, answering: Answering
    ) -> str:
        label = self._new_label(source)
        self._add(label, source, path, saved, answering)
        with self._records:
            self._labels[source] = label
            self._origins[label] = (source, saved.config["sha256"])
        return label

    def _read(self, source: str, path: Path) -> Checkpoint:
        """Read a checkpoint; a damaged one is refused before the batch is waited for."""
        with self._told(source, path):
            return read(path)

    @contextmanager
    def _told(self, source: str, path: Path) -> Iterator[None]:
        """What reading or adding a foreign file raises is told as visitors may read it."""
        try:
            yield
        except Exception as error:  # whatever it is
            folder = self._sources.folder
            hidden = [(str(path), self._sources.name_of(source)), (str(folder), folder.name)]
            raise RoadError(message_for_visitors(error, hidden)) from None

    def _add(
        self, label: str, source: str, path: Path, saved: Checkpoint, answering: Answering
    ) -> None:
        """Put a checkpoint on the model, where needed in place of another; `_moving` is held."""
        with self._told(source, path):
            line = about(saved)
            with answering.lock:
                # Before another one is removed: nothing has changed where this one does not fit.
                names = answering.add_checkpoint(path, self._sources.name_of(source), label)
                try:
                    leaving = self._make_room()
                except RoadError:
                    answering.remove_checkpoint(label)
                    raise
                if leaving is not None:
                    answering.remove_checkpoint(leaving)
                with self._records:
                    self._on_model[label], self._names[label] = None, names
                    self._about[label] = line

    def _make_room(self) -> str | None:
        """Remove a label from the records where the model is full, and return it; else None."""
        with self._records:
            if len(self._on_model) < _MAX_CHECKPOINTS:
                return None
            leaving = next((label for label in self._on_model if not self._uses[label]), None)
            if leaving is None:
                raise RoadError(
                    f"{_MAX_CHECKPOINTS} checkpoints are in use at this moment: "
                    "try again in a minute"
                )
            del self._on_model[leaving]
            return leaving

    def _new_label(self, source: str) -> str:
        plain = re.sub(r"\W+", "_", Path(source).name[:60]).strip("_") or "other"
        with self._records:
            taken = self._taken | set(self._origins)
        numbered = (f"{plain}_{number}" for number in itertools.count(2))
        return next(label for label in itertools.chain([plain], numbered) if label not in taken)
