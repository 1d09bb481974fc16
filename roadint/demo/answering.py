"""Where answers come from: the model in this process, or a server."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from roadint.demo.requests import AnswerSettings, Update
from roadint.grammar.composition import Composition


class Answering(Protocol):
    """Answers of one model, for many callers at once."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held by whoever changes which checkpoints there are."""

    @property
    def model_name(self) -> str:
        """The name of the base model, without folders of this machine."""

    @property
    def about(self) -> str:
        """One line for people: the model, and how it runs."""

    def answers(
        self,
        prompt: str,
        compositions: Sequence[Composition],
        settings: AnswerSettings,
        visitor: str | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Generator[Update, None, None]:
        """Answer one prompt through some compositions.

        Args:
            prompt: The instruction.
            compositions: One an answer.
            settings: How answers are generated.
            visitor: The visitor, whose requests are counted.
            wanted: Called repeatedly; False, when nobody waits any more, stops the answers.

        Yields:
            The answers as they grow, at least twice a second. Closing the iterator stops them.

        Raises:
            RoadError: where the prompt or a composition does not fit, or too many requests wait.
        """

    def add_checkpoint(self, path: Path, name: str, label: str) -> list[str]:
        """Make a checkpoint's subspaces known.

        Args:
            path: The folder of its files.
            name: Its path in the app's folder, or its hub id.
            label: Compositions use its names as "name@label".

        Returns:
            The names.

        Raises:
            RoadError: where it does not fit; nothing has changed.
        """

    def remove_checkpoint(self, label: str) -> None:
        """Forget what `add_checkpoint` made known as `label`."""
