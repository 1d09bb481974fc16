"""Requests of visitors: settings, requests, and updates with growing answers."""

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from roadint.demo.checks import check_number, check_text, check_whole
from roadint.errors import RoadError
from roadint.grammar.composition import Composition

MAX_NEW_TOKENS = 512
MAX_PROMPT_TOKENS = 512  # the template's included
MAX_ROWS = 32  # of one batch, and so of one request
NOTHING_ASKED = "nothing to compare: expected at least one composition"
# A longer prompt is refused before its tokens are counted, which takes long for megabytes.
_MAX_PROMPT_CHARACTERS = 20 * MAX_PROMPT_TOKENS


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are generated.

    Attributes:
        max_new_tokens: The length at which an answer ends.
        temperature: 0 is greedy decoding.
        seed: The seed of sampling; a request that runs alone gets the same answers again.

    Raises:
        RoadError: where a setting is not a number, or is out of range; the message names it.
    """

    max_new_tokens: int = 48
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        length = check_whole("the number of new tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        temperature = float(check_number("the temperature", self.temperature, 0, 100))
        if 0 < temperature < 0.01:
            raise RoadError(
                f"the temperature {temperature:g} is too near to 0: "
                "expected 0, which is greedy, or at least 0.01"
            )
        seed = check_whole("the seed", self.seed, -(2**63), 2**63 - 1)
        checked = {"max_new_tokens": length, "temperature": temperature, "seed": seed}
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass
class Update:
    """The answers so far.

    Attributes:
        texts: One a composition.
        tokens: How many new tokens all answers have.
        seconds: The time since the request began to run.
        done: Whether the answers are complete.
        waiting: How many requests are ahead of a waiting one.
    """

    texts: list[str]
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    waiting: int = 0


@dataclass(eq=False)
class AnswerRequest:
    """One prompt through some compositions, for one visitor.

    Attributes:
        prompt: The instruction, without the template.
        compositions: One an answer.
        settings: How answers are generated.
        visitor: The visitor, whose requests are counted; None where they are not.
        updates: Updates of the model's thread, or the error that ended the request.
        closed: Set when nobody waits for the answers any more.
    """

    prompt: str
    compositions: list[Composition]
    settings: AnswerSettings
    visitor: str | None = None
    updates: "queue.Queue[Update | Exception]" = field(default_factory=queue.Queue)
    closed: threading.Event = field(default_factory=threading.Event)

    def shares_batch_with(self, other: "AnswerRequest") -> bool:
        """Whether both can share a batch; sampling uses the only generator, so it runs alone."""
        return not self.settings.temperature and not other.settings.temperature

    def newest_update(self, timeout: float = 0.5) -> Update:
        """Wait for updates, and skip all but the last.

        Args:
            timeout: Seconds to wait for the first one.

        Returns:
            The newest update.

        Raises:
            queue.Empty: where none has come in time.
            Exception: the error that ended the request.
        """
        newest = self.updates.get(timeout=timeout)
        while not isinstance(newest, Exception):
            try:
                following = self.updates.get_nowait()
            except queue.Empty:
                return newest
            newest = following
        raise newest


def check_question(prompt: str, compositions: Sequence[Composition]) -> None:
    """Check a prompt, and how many compositions there are.

    Args:
        prompt: The instruction.
        compositions: One an answer.

    Raises:
        RoadError: where the prompt is empty, too long or no text, or there are too many.
    """
    if not check_text("the prompt", prompt, _MAX_PROMPT_CHARACTERS).strip():
        raise RoadError("the prompt is empty: write an instruction, or choose an example")
    if len(compositions) > MAX_ROWS:
        raise RoadError(f"{len(compositions)} compositions at once: expected at most {MAX_ROWS}")
