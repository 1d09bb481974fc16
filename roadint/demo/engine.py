"""The model behind the app: one thread that answers for everybody, the waiting requests of all users in one batch.

Rows of a batch do not see each other: each has its own prompt, composition and length. Texts come as they grow; a request that is
closed frees its rows' time at the next token.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from roadint.adapters.products import check_products
from roadint.data.prompts import batch_prompts, generation_inputs, pad_id
from roadint.demo.checks import check_number, check_text, check_whole, unexpected
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import Composition
from roadint.interventions.sums import check_sums
from roadint.model.road_model import PAPER_DECODING, RoadModel

MAX_PROMPT = 512  # tokens, template included
_MOST_CHARACTERS = (
    20 * MAX_PROMPT
)  # more are refused before they are counted as tokens, which takes long for megabytes
MAX_ANSWER = 512  # new tokens
_ROWS = 32  # in one batch
_WAITING = 64  # requests of all visitors, those that run included
_EACH = 8  # of one visitor


@dataclass(frozen=True)
class Settings:
    """Of a generation. temperature 0 is greedy; seed: of sampling, the same answers for the same request alone.

    Raises RoadError, which names the setting, for a number that is none or is outside what is possible.
    """

    max_new_tokens: int = 48
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole = check_whole("the number of new tokens", self.max_new_tokens, 1, MAX_ANSWER)
        temperature = check_number("the temperature", self.temperature, 0, 100)
        if 0 < temperature < 0.01:
            raise RoadError(
                f"the temperature {temperature:g} is too near to 0: expected 0, which is greedy, or at least 0.01"
            )
        seed = check_whole("the seed", self.seed, -(2**63), 2**63 - 1)
        for name, value in (
            ("max_new_tokens", whole),
            ("temperature", float(temperature)),
            ("seed", seed),
        ):
            object.__setattr__(self, name, value)

    @property
    def kind(self) -> tuple[float, int]:
        """Requests of one kind can share a batch; sampling draws from one generator, so a sampled request runs by itself."""
        return self.temperature, self.seed if self.temperature else 0


@dataclass
class Update:
    """The answers so far, one a composition; tokens of all rows together, and seconds since the request ran."""

    texts: list[str]
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    waiting: int = 0  # how many requests are ahead, before it runs


@dataclass(eq=False)
class _Request:
    prompt: str
    compositions: list[Composition]
    settings: Settings
    visitor: str | None = None
    updates: "queue.Queue[Update | Exception]" = field(default_factory=queue.Queue)
    closed: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Answers of one RoadModel for many callers at once. Raises RoadError, in `answers`, for what does not fit."""

    def __init__(self, road: RoadModel, tokenizer: Any) -> None:
        self.road, self.tokenizer = road, tokenizer
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._served: dict[
            str, int
        ] = {}  # visitors who have a turn, or had one and wait for more: which
        self._turn = 0
        self._changed = threading.Condition()
        self.lock = (
            threading.Lock()
        )  # held while a batch runs: what changes the RoadModel takes it too
        threading.Thread(target=self._serve, daemon=True, name="roadint-demo").start()

    def answers(
        self,
        prompt: str,
        compositions: Sequence[Composition],
        settings: Settings,
        visitor: str | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Generator[Update, None, None]:
        """The answers of one prompt through several compositions, as they grow; closing the iterator stops them.

        visitor: whose requests are counted together. wanted: asked again and again whether anybody still waits; an answer of no
        stops them too. At least twice a second an update comes, be it the same once more, so that the iterator can be closed.
        """
        self.check(prompt, compositions)
        if not compositions:
            raise RoadError("nothing to compare: tick a composition, or write an expression")
        request = _Request(prompt, list(compositions), settings, visitor)
        ahead = self._join(request)
        try:
            update = Update([""] * len(request.compositions), waiting=ahead)
            if ahead:
                yield update
            while wanted():
                try:
                    update = _newest(request.updates)
                except queue.Empty:
                    if update.waiting:
                        update = replace(update, waiting=self._ahead_of(request))
                yield update
                if update.done:
                    return
        finally:
            self._leave(request)

    def warm_up(self) -> None:
        """One token, so that the first answer is as quick as the others."""
        for _ in self.answers("Hello", [Composition()], Settings(max_new_tokens=1)):
            pass

    def check(self, prompt: str, compositions: Sequence[Composition] = ()) -> None:
        """Raises RoadError for a prompt that is empty or too long, and for compositions that cannot run on it."""
        if not check_text("the prompt", prompt, _MOST_CHARACTERS).strip():
            raise RoadError("the prompt is empty: write an instruction, or choose an example")
        if len(compositions) > _ROWS:
            raise RoadError(f"{len(compositions)} compositions at once: expected at most {_ROWS}")
        length = len(batch_prompts(self.tokenizer, self.road.template, [prompt])["input_ids"][0])
        if length > MAX_PROMPT:
            raise RoadError(
                f"the prompt has {length} tokens, the template's included: expected at most {MAX_PROMPT}; shorten it"
            )
        try:
            self._check_compositions(compositions, length)
        except Exception as error:
            raise RoadError(unexpected(error)) from None

    def _check_compositions(self, compositions: Sequence[Composition], length: int) -> None:
        """What the model would refuse, before a batch is shared with others."""
        names = set(self.road.names)
        gone = [name for each in compositions for name, _ in each.terms if name not in names]
        if gone:
            raise RoadError(
                f"{quoted(gone[0])} is not on the model: open its checkpoint, or write another composition"
            )
        sites = list(self.road.interventions)
        check_sums(sites, compositions)
        check_products(self.road.adapters, compositions)
        for site in sites:
            acting = [
                each
                for each in compositions
                if any(name in site.partition for name, _ in each.terms)
            ]
            if acting:
                site.strengths(acting)
                site.position.check(torch.tensor([length]))

    def _join(self, request: _Request) -> int:
        """Wait; returns how many are ahead. Raises RoadError where too many wait already."""
        with self._changed:
            present = [each for each in self._waiting + self._running if not each.closed.is_set()]
            own = (
                sum(each.visitor == request.visitor for each in present)
                if request.visitor is not None
                else 0
            )
            if own >= _EACH:
                raise RoadError(
                    f"{own} requests of yours are waiting already: expected at most {_EACH}; wait for one, or stop it"
                )
            if len(present) >= _WAITING:
                raise RoadError(
                    f"{len(present)} requests of all visitors are waiting: try again in a minute"
                )
            ahead = len(self._waiting)
            self._waiting.append(request)
            self._changed.notify()
            return ahead

    def _ahead_of(self, request: _Request) -> int:
        with self._changed:
            return self._waiting.index(request) if request in self._waiting else 0

    def _leave(self, request: _Request) -> None:
        request.closed.set()
        with self._changed:
            if request in self._waiting:
                self._waiting.remove(request)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
            time.sleep(0.03)  # requests of the same moment share the batch
            with self._changed:
                self._running = self._next()
            self._answer(self._running)
            with self._changed:
                self._running = []

    def _answer(self, requests: Sequence[_Request]) -> None:
        """Run them in one batch; if it fails, one by one, so that only who asked for what fails is told."""
        requests = [each for each in requests if not each.closed.is_set()]
        try:
            with self.lock:
                if requests:
                    self._run(requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].updates.put(RoadError(unexpected(error)))
                return
            for request in requests:
                self._answer([request])

    def _next(self) -> list[_Request]:
        """The request whose turn it is, and those that can share its batch."""
        chosen: list[_Request] = []
        rows = 0
        for request in self._in_turn():
            alike = not chosen or (
                request.settings.kind == chosen[0].settings.kind
                and not request.settings.temperature
            )
            if alike and rows + len(request.compositions) <= _ROWS:
                chosen.append(request)
                rows += len(request.compositions)
        self._waiting = [each for each in self._waiting if each not in chosen]
        self._turn += 1
        waiting = {each.visitor for each in self._waiting}
        self._served = {
            visitor: turn for visitor, turn in self._served.items() if visitor in waiting
        }
        self._served |= {each.visitor: self._turn for each in chosen if each.visitor is not None}
        return chosen

    def _in_turn(self) -> list[_Request]:
        """Who waits: nobody's second request before another's first, and first whoever had no turn for longest."""
        counts: Counter[str] = Counter()
        keys: dict[_Request, tuple[int, int]] = {}
        for request in self._waiting:
            name = request.visitor
            keys[request] = (0, 0) if name is None else (counts[name], self._served.get(name, 0))
            if name is not None:
                counts[name] += 1
        return sorted(self._waiting, key=keys.__getitem__)

    def _run(self, requests: Sequence[_Request]) -> None:
        rows = [
            (request, composition) for request in requests for composition in request.compositions
        ]
        batch = generation_inputs(
            self.tokenizer, self.road.template, [request.prompt for request, _ in rows]
        )
        progress = _Progress(self.tokenizer, requests)
        settings = requests[0].settings
        sampling: dict[str, Any] = {"do_sample": bool(settings.temperature)}
        if settings.temperature:
            torch.manual_seed(settings.seed)
            sampling["temperature"] = settings.temperature
        inputs: dict[str, Any] = {name: value.to(self.road.device) for name, value in batch.items()}
        inputs |= {
            **PAPER_DECODING,
            **sampling,
            "max_new_tokens": max(request.settings.max_new_tokens for request in requests),
        }
        self.road.generate(
            compose=[composition for _, composition in rows],
            **inputs,
            pad_token_id=pad_id(self.tokenizer),
            streamer=progress,
            stopping_criteria=StoppingCriteriaList([_Stop(progress.finished)]),
        )
        progress.end()


def _newest(updates: "queue.Queue[Update | Exception]") -> Update:
    """The last of what has come, after half a second at most; raises what came instead, or queue.Empty."""
    came = updates.get(timeout=0.5)
    while not isinstance(came, Exception):
        newest = came
        try:
            came = updates.get_nowait()
        except queue.Empty:
            return newest
    raise came


class _Progress(BaseStreamer):
    """Hands every request the texts of its rows after each step."""

    def __init__(self, tokenizer: Any, requests: Sequence[_Request]) -> None:
        self._tokenizer, self._requests = tokenizer, requests
        self._ids: list[list[int]] = [[] for request in requests for _ in request.compositions]
        self._ended = [False] * len(self._ids)
        self._started, self._prompt, self._told = time.perf_counter(), True, [False] * len(requests)
        ends = tokenizer.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    def put(self, value: Tensor) -> None:
        """One token a row; the first call brings the prompts."""
        if self._prompt:
            self._prompt = False
            return
        row = 0
        for place, request in enumerate(self._requests):
            for _ in request.compositions:
                if not self._ended[row]:
                    token = int(value[row])
                    if token in self._ends:
                        self._ended[row] = True
                    else:
                        self._ids[row].append(token)
                        self._ended[row] = len(self._ids[row]) >= request.settings.max_new_tokens
                row += 1
            self._tell(place)

    def end(self) -> None:
        """Generation is over."""
        self._ended = [True] * len(self._ended)
        for place in range(len(self._requests)):
            self._tell(place)

    def finished(self) -> list[bool]:
        """Which rows need no further token."""
        closed = [
            request.closed.is_set() for request in self._requests for _ in request.compositions
        ]
        return [one or other for one, other in zip(self._ended, closed, strict=True)]

    def _tell(self, place: int) -> None:
        if self._told[place]:
            return
        start = sum(len(each.compositions) for each in self._requests[:place])
        own = range(start, start + len(self._requests[place].compositions))
        texts = [
            str(self._tokenizer.decode(self._ids[row], skip_special_tokens=True)).strip()
            for row in own
        ]
        done = all(self._ended[row] for row in own)
        tokens = sum(len(self._ids[row]) for row in own)
        self._requests[place].updates.put(
            Update(texts, tokens, time.perf_counter() - self._started, done)
        )
        self._told[place] = done


class _Stop(StoppingCriteria):
    """Ends the rows that are finished, or whose caller is gone."""

    def __init__(self, finished: Callable[[], list[bool]]) -> None:
        self._finished = finished

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        # transformers gives rows that have ended padding from then on.
        return torch.tensor(self._finished(), device=input_ids.device)
