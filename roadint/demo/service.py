"""The service that all pages of the app share: the model and its checkpoints."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any

from roadint.checkpoint.reading import folder_of, read
from roadint.checkpoint.sources import CheckpointSources
from roadint.demo.about import about
from roadint.demo.answering import Answering
from roadint.demo.batching import Batcher
from roadint.demo.checks import check_text
from roadint.demo.open_checkpoints import OpenCheckpoints
from roadint.errors import RoadError, first_line
from roadint.grammar.composition import Composition
from roadint.model.opening import open_checkpoint

SHIPPED = Path(str(files("roadint.demo") / "checkpoint"))
_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\][^\s'\",:;()]+")  # in a message
_log = logging.getLogger("roadint.demo")


class Service:
    """The model and its checkpoints, loaded in the background.

    Args:
        first: The first checkpoint, a folder or a hub id; by default the one that ships with
            roadint.
        folder: The folder whose checkpoints pages may open, beside those of the hub.
        model: A base model in place of the checkpoint's.
        connect: Finds a server that answers, in place of a model in this process.

    Raises:
        RoadError: where the first checkpoint cannot be read.

    Attributes:
        first_names: The subspaces of the first checkpoint.
        first_digest: What tells it from others of its name.
    """

    def __init__(
        self,
        first: str | None = None,
        *,
        folder: str | Path = "runs",
        model: str | None = None,
        connect: Callable[[], Answering] | None = None,
    ) -> None:
        self.first, self.folder, self._model = str(first or SHIPPED), Path(folder).resolve(), model
        first_checkpoint = read(folder_of(self.first))
        self.first_names, self._about_first = first_checkpoint.names(), about(first_checkpoint)
        self.first_digest = str(first_checkpoint.config["sha256"])[:12]
        self._sources = CheckpointSources(self.folder)
        self._opened = OpenCheckpoints(self._sources, self.first_names)
        self._connect = connect or self._load_model
        self._answering: Answering | None = None
        self._failure: str | None = None
        self._loaded = threading.Event()
        self._began, self._step = time.monotonic(), "loading the model"
        threading.Thread(target=self._load, daemon=True, name="roadint-demo-load").start()

    @property
    def ready(self) -> bool:
        """Whether the model can answer."""
        return self._answering is not None

    @property
    def failed(self) -> bool:
        """Whether loading ended in an error."""
        return self._failure is not None

    @property
    def status(self) -> str:
        """One line for people."""
        if self._failure:
            return f"The model could not be loaded: {self._failure}"
        return self._step if self._answering is None else self._answering.about

    @property
    def first_name(self) -> str:
        """The first checkpoint's name, without folders of this machine."""
        return "german-english" if self.first == str(SHIPPED) else Path(self.first).name

    def progress(self) -> dict[str, Any]:
        """The model: its "state" ("loading", "ready", "failed"), "text" and "seconds" so far."""
        state = "failed" if self.failed else "ready" if self.ready else "loading"
        return {"state": state, "text": self.status, "seconds": time.monotonic() - self._began}

    @property
    def is_served(self) -> bool:
        """Whether a server answers, which shows nothing of its model's inside."""
        return self.ready and not isinstance(self._answering, Batcher)

    @property
    def model_name(self) -> str:
        """The name of the base model, without folders of this machine."""
        return self.answering.model_name

    @property
    def answering(self) -> Answering:
        """Where answers come from.

        Raises:
            RoadError: where the model is loading, or could not be loaded.
        """
        if self._answering is None:
            later = "" if self._failure else ": answers come as soon as it is ready"
            raise RoadError(f"{self.status}{later}")
        return self._answering

    @property
    def batcher(self) -> Batcher:
        """The thread that runs the model.

        Raises:
            RoadError: as `answering`, and where a server answers.
        """
        if not isinstance(self.answering, Batcher):
            raise RoadError(
                "a server answers here, which shows nothing of its model's inside: for that, start "
                "roadint demo without --server and --engine"
            )
        return self.answering

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the model is loaded, or could not be; returns whether it is ready."""
        self._loaded.wait(seconds)
        return self.ready

    def names(self, labels: Sequence[str]) -> list[str]:
        """The subspaces that a page which has opened these checkpoints may compose."""
        return [*self.first_names, *self._opened.names(labels)]

    def parse(self, text: str, labels: Sequence[str]) -> Composition:
        """Read a page's expression.

        Args:
            text: The expression.
            labels: The checkpoints that the page has opened: it sees no others.

        Returns:
            The composition.

        Raises:
            RoadError: where the expression is not understood, or names what the page does not see.
        """
        return Composition.parse(check_text("the expression", text), self.names(labels))

    def check(self, composition: Composition) -> None:
        """Refuse a composition that could run on no prompt, where the model is here.

        Raises:
            RoadError: where it is one.
        """
        if isinstance(self._answering, Batcher):
            self._answering.check_composition(composition)

    def opened(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """The first checkpoint and those with these labels.

        Returns:
            A list of {"label", "name", "origin", "names", "about"}; the first one's label is "",
            and it has a "digest".
        """
        name = self.first_name
        first: dict[str, Any] = {"label": "", "name": name, "origin": name}
        first["digest"] = self.first_digest
        first |= {"names": self.first_names, "about": self._about_first}
        return [first, *self._opened.told(labels)]

    def checkpoints(self) -> list[str]:
        """The checkpoints in the folder, by their paths relative to it."""
        return self._sources.in_folder()

    def open(self, name: str) -> str:
        """Put a checkpoint on the model.

        Where there is no room, one that no request needs is removed.

        Args:
            name: A path in the folder, or a hub id.

        Returns:
            The label, the same for the same checkpoint.

        Raises:
            RoadError: where it is not allowed, damaged or does not fit the model; nothing changes.
        """
        source = self._sources.source_of(check_text("the checkpoint's name", name, 300))
        return self._opened.open(source, self.answering)

    def using(self, compositions: Iterable[Composition]) -> AbstractContextManager[None]:
        """Keep the checkpoints of compositions on the model inside of a context.

        Args:
            compositions: The compositions that will run.

        Returns:
            The context.

        Raises:
            RoadError: on entering, if a checkpoint is gone.
        """
        names = [name for composition in compositions for name, _ in composition.terms]
        return self._opened.using({name.partition("@")[2] for name in names}, self.answering)

    def _load_model(self) -> Answering:
        self._step = "loading the model; the first time, it is prepared for about a minute"
        road, tokenizer = open_checkpoint(self.first, self._model, None)
        self._step = "trying the model once"
        batcher = Batcher(road, tokenizer)
        batcher.warm_up()
        return batcher

    def _load(self) -> None:
        try:
            self._answering = self._connect()
        except Exception as error:  # the page tells it, but for the names of this machine's folders
            _log.error("the model could not be loaded", exc_info=error)
            self._failure = _ABSOLUTE_PATH.sub("…", first_line(error))
        finally:
            self._loaded.set()
