"""What all pages of the app share: the model, once it is loaded, and the checkpoints on it."""

import re
import threading
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from roadint import checkpoint
from roadint.composition import Composition
from roadint.demo.engine import Engine
from roadint.errors import RoadError, did_you_mean, first_line, listing
from roadint.terminal import open_checkpoint

SHIPPED = Path(str(files("roadint.demo") / "checkpoint"))
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MOST = 16  # checkpoints at once


class Service:
    """Loads in the background. first: the checkpoint to begin with, the one that ships with roadint by default.

    folder: where checkpoints may be opened from the page; a hub id may always. model: another base model than the checkpoint's.
    """

    def __init__(self, first: str | None = None, *, folder: str | Path = "runs", model: str | None = None) -> None:
        self.first, self.folder, self._model = str(first or SHIPPED), Path(folder).resolve(), model
        self.names_at_first = self._check_first()
        self._engine: Engine | None = None
        self._failure: str | None = None
        self._labels: dict[str, str] = {}  # source → label
        self._opening, self._loaded = threading.Lock(), threading.Event()
        threading.Thread(target=self._load, daemon=True, name="roadint-demo-load").start()

    @property
    def ready(self) -> bool:
        """Whether answers can be had."""
        return self._engine is not None

    @property
    def status(self) -> str:
        """One line for people."""
        if self._failure:
            return f"The model could not be loaded: {self._failure}"
        if self._engine is None:
            return "The model is loading. The first time, it is prepared for about a minute; answers come as soon as it is ready."
        road = self._engine.road
        count = sum(each.numel() for each in road.model.parameters())
        return f"{road.model.name_or_path}, {count / 1e6:,.0f} million parameters, {str(road.model.dtype).removeprefix('torch.')}"

    @property
    def failed(self) -> bool:
        """Whether loading ended in an error."""
        return self._failure is not None

    @property
    def engine(self) -> Engine:
        """Raises RoadError while the model is loading, and where it could not be loaded."""
        if self._engine is None:
            raise RoadError(self.status)
        return self._engine

    def wait(self, seconds: float | None = None) -> bool:
        """Until the model is loaded, or could not be; returns whether it is ready."""
        self._loaded.wait(seconds)
        return self.ready

    def names(self, labels: Sequence[str]) -> list[str]:
        """What a page that has opened these checkpoints may compose."""
        every = self._engine.road.names if self._engine else self.names_at_first
        return [name for name in every if "@" not in name or name.partition("@")[2] in labels]

    def parse(self, text: str, labels: Sequence[str]) -> Composition:
        """A page's expression, over its own names alone. Raises RoadError."""
        return Composition.parse(text, self.names(labels))

    def sources(self, labels: Sequence[str]) -> list[str]:
        """What was opened as these labels, as `open` takes it again."""
        by_label = {label: source for source, label in self._labels.items()}
        found = [by_label[label] for label in labels if label in by_label]
        return [str(Path(each).relative_to(self.folder)) if Path(each).is_absolute() else each for each in found]

    def found(self) -> list[str]:
        """The checkpoints in the folder, by their path in it."""
        paths = sorted(self.folder.rglob(checkpoint.CONFIG)) if self.folder.is_dir() else []
        return [str(path.parent.relative_to(self.folder)) for path in paths if checkpoint.WHILE_TRAINING not in path.parts]

    def open(self, name: str) -> str:
        """Load a checkpoint, from the folder or the hub, beside what is there; returns its label, the same for the same one.

        Raises RoadError, and changes nothing, for one that is not allowed, damaged or does not fit the model.
        """
        name = name.strip()
        if not name:
            raise RoadError("no checkpoint chosen: expected one of the folder, or a hub id")
        path = (self.folder / name).resolve()
        inside = path == self.folder or self.folder in path.parents
        if inside and path.is_dir():
            source = str(path)
        elif _HUB_ID.fullmatch(name) and ".." not in name and inside:
            source = name
        else:
            found = self.found()
            raise RoadError(
                f"checkpoint {name!r} is not in the allowed folder: expected one of {listing(found) or 'none'}, or a hub id"
                f"{did_you_mean(name, found)}"
            )
        engine = self.engine
        with self._opening:
            if source in self._labels:
                return self._labels[source]
            if len(self._labels) >= _MOST:
                raise RoadError(f"{_MOST} checkpoints are open already: restart the app for others")
            label = self._label_for(name)
            with engine.lock:
                engine.road.add_checkpoint(source, label)
            self._labels[source] = label
            return label

    def _check_first(self) -> list[str]:
        """The names of the first checkpoint; raises RoadError before a model is loaded."""
        return checkpoint.read(checkpoint.folder_of(self.first)).names()

    def _label_for(self, name: str) -> str:
        plain = re.sub(r"\W+", "_", Path(name).name).strip("_") or "other"
        taken = set(self._labels.values()) | set(self.names_at_first)
        return next(label for label in (plain, *(f"{plain}_{number}" for number in range(2, 99))) if label not in taken)

    def _load(self) -> None:
        try:
            road, tokenizer = open_checkpoint(self.first, self._model, None)
            engine = Engine(road, tokenizer)
            engine.warm_up()
            self._engine = engine
        except Exception as error:  # told on the page
            self._failure = first_line(error)
        finally:
            self._loaded.set()
