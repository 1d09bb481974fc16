"""What all pages of the app share: the model, once it is loaded, and the checkpoints on it."""

import logging
import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path

from roadint.demo.checks import check_text
from roadint.demo.engine import Engine
from roadint.demo.shelf import Shelf
from roadint.errors import RoadError, first_line
from roadint.grammar.composition import Composition
from roadint.model import checkpoint
from roadint.model.opening import open_checkpoint

SHIPPED = Path(str(files("roadint.demo") / "checkpoint"))
_PATH = re.compile(
    r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\][^\s'\",:;()]+"
)  # an absolute one, in a message
_log = logging.getLogger("roadint.demo")


class Service:
    """Loads in the background. first: the checkpoint to begin with, the one that ships with roadint by default.

    folder: where checkpoints may be opened from the page; a hub id may always. model: another base model than the checkpoint's.
    """

    def __init__(
        self, first: str | None = None, *, folder: str | Path = "runs", model: str | None = None
    ) -> None:
        self.first, self.folder, self._model = str(first or SHIPPED), Path(folder).resolve(), model
        self.names_at_first = self._check_first()
        self._engine: Engine | None = None
        self._failure: str | None = None
        self._shelf = Shelf(self.folder, self.names_at_first)
        self._loaded = threading.Event()
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
        return f"{self.model_name}, {count / 1e6:,.0f} million parameters, {str(road.model.dtype).removeprefix('torch.')}"

    @property
    def model_name(self) -> str:
        """The base model's, without the folders of this machine."""
        name = str(self.engine.road.model.name_or_path)
        return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name

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
        return [*self.names_at_first, *self._shelf.names(labels)]

    def parse(self, text: str, labels: Sequence[str]) -> Composition:
        """A page's expression, over its own names alone. Raises RoadError."""
        return Composition.parse(check_text("the expression", text), self.names(labels))

    def sources(self, labels: Sequence[str]) -> list[str]:
        """What was opened as these labels, as `open` takes it again."""
        return self._shelf.sources(labels)

    def found(self) -> list[str]:
        """The checkpoints in the folder, by their path in it."""
        return self._shelf.found()

    def open(self, name: str) -> str:
        """Load a checkpoint, from the folder or the hub, beside what is there; returns its label, the same for the same one.

        One that no request needs makes room where there is none. Raises RoadError, and changes nothing, for one that is not
        allowed, damaged or does not fit the model.
        """
        source = self._shelf.source(name)
        return self._shelf.open(source, self.engine)

    def using(self, compositions: Iterable[Composition]) -> AbstractContextManager[None]:
        """Have what these compositions need on the model, inside. Raises RoadError where it is gone."""
        return self._shelf.using(
            {name.partition("@")[2] for each in compositions for name, _ in each.terms}, self.engine
        )

    def _check_first(self) -> list[str]:
        """The names of the first checkpoint; raises RoadError before a model is loaded."""
        return checkpoint.read(checkpoint.folder_of(self.first)).names()

    def _load(self) -> None:
        try:
            road, tokenizer = open_checkpoint(self.first, self._model, None)
            engine = Engine(road, tokenizer)
            engine.warm_up()
            self._engine = engine
        except Exception as error:  # told on the page, but for the names of this machine's folders
            _log.error("the model could not be loaded", exc_info=error)
            self._failure = _PATH.sub("…", first_line(error))
        finally:
            self._loaded.set()
