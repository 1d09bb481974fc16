"""The model behind the app: one thread that answers for everybody, the waiting requests of all users in one batch.

Rows of a batch do not see each other: each has its own prompt, composition and length. Texts come as they grow; a request that is
closed frees its rows' time at the next token.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from roadint.composition import Composition
from roadint.errors import RoadError, first_line
from roadint.model import DECODING, RoadModel
from roadint.prompt import batch_prompts, generation_inputs, pad_id

MAX_PROMPT = 512  # tokens, template included
_ROWS = 32  # in one batch


@dataclass(frozen=True)
class Settings:
    """Of a generation. temperature 0 is greedy; seed: of sampling, the same answers for the same request alone."""

    max_new_tokens: int = 48
    temperature: float = 0.0
    seed: int = 0

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


@dataclass
class _Request:
    prompt: str
    compositions: list[Composition]
    settings: Settings
    updates: "queue.Queue[Update | Exception]" = field(default_factory=queue.Queue)
    closed: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Answers of one RoadModel for many callers at once. Raises RoadError, in `answers`, for what does not fit."""

    def __init__(self, road: RoadModel, tokenizer: Any) -> None:
        self.road, self.tokenizer = road, tokenizer
        self._waiting: list[_Request] = []
        self._changed = threading.Condition()
        self.lock = threading.Lock()  # held while a batch runs: what changes the RoadModel takes it too
        threading.Thread(target=self._serve, daemon=True, name="roadint-demo").start()

    def answers(self, prompt: str, compositions: Sequence[Composition], settings: Settings) -> Iterator[Update]:
        """The answers of one prompt through several compositions, as they grow; closing the iterator stops them."""
        self.check(prompt)
        if not compositions:
            raise RoadError("nothing to compare: tick a composition, or write an expression")
        if len(compositions) > _ROWS:
            raise RoadError(f"{len(compositions)} compositions at once: expected at most {_ROWS}")
        request = _Request(prompt, list(compositions), settings)
        with self._changed:
            ahead = len(self._waiting)
            self._waiting.append(request)
            self._changed.notify()
        try:
            if ahead:
                yield Update([""] * len(request.compositions), waiting=ahead)
            while True:
                update = request.updates.get()
                if isinstance(update, Exception):
                    raise update
                yield update
                if update.done:
                    return
        finally:
            request.closed.set()

    def warm_up(self) -> None:
        """One token, so that the first answer is as quick as the others."""
        for _ in self.answers("Hello", [Composition()], Settings(max_new_tokens=1)):
            pass

    def check(self, prompt: str) -> None:
        """Raises RoadError for a prompt that is empty or too long."""
        if not prompt.strip():
            raise RoadError("the prompt is empty: write an instruction, or choose an example")
        length = len(batch_prompts(self.tokenizer, self.road.template, [prompt])["input_ids"][0])
        if length > MAX_PROMPT:
            raise RoadError(f"the prompt has {length} tokens, the template's included: expected at most {MAX_PROMPT}; shorten it")

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
            time.sleep(0.03)  # requests of the same moment share the batch
            with self._changed:
                batch = self._next()
            if batch:
                try:
                    with self.lock:
                        self._run(batch)
                except Exception as error:  # told to those who asked; the others go on
                    told = (
                        error if isinstance(error, RoadError) else RoadError(f"generation failed ({first_line(error)}): try again")
                    )
                    for request in batch:
                        request.updates.put(told)

    def _next(self) -> list[_Request]:
        """The first request, and those after it that can share its batch."""
        self._waiting = [each for each in self._waiting if not each.closed.is_set()]
        chosen: list[_Request] = []
        rows = 0
        for request in self._waiting:
            alike = not chosen or (request.settings.kind == chosen[0].settings.kind and not request.settings.temperature)
            if alike and rows + len(request.compositions) <= _ROWS:
                chosen.append(request)
                rows += len(request.compositions)
        self._waiting = [each for each in self._waiting if each not in chosen]
        return chosen

    def _run(self, requests: Sequence[_Request]) -> None:
        rows = [(request, composition) for request in requests for composition in request.compositions]
        batch = generation_inputs(self.tokenizer, self.road.template, [request.prompt for request, _ in rows])
        progress = _Progress(self.tokenizer, requests)
        settings = requests[0].settings
        sampling: dict[str, Any] = {"do_sample": bool(settings.temperature)}
        if settings.temperature:
            torch.manual_seed(settings.seed)
            sampling["temperature"] = settings.temperature
        inputs: dict[str, Any] = {name: value.to(self.road.device) for name, value in batch.items()}
        inputs |= {**DECODING, **sampling, "max_new_tokens": max(request.settings.max_new_tokens for request in requests)}
        self.road.generate_tokens(
            compose=[composition for _, composition in rows],
            **inputs,
            pad_token_id=pad_id(self.tokenizer),
            streamer=progress,
            stopping_criteria=StoppingCriteriaList([_Stop(progress.finished)]),
        )
        progress.end()


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
        closed = [request.closed.is_set() for request in self._requests for _ in request.compositions]
        return [one or other for one, other in zip(self._ended, closed, strict=True)]

    def _tell(self, place: int) -> None:
        if self._told[place]:
            return
        start = sum(len(each.compositions) for each in self._requests[:place])
        own = range(start, start + len(self._requests[place].compositions))
        texts = [str(self._tokenizer.decode(self._ids[row], skip_special_tokens=True)).strip() for row in own]
        done = all(self._ended[row] for row in own)
        tokens = sum(len(self._ids[row]) for row in own)
        self._requests[place].updates.put(Update(texts, tokens, time.perf_counter() - self._started, done))
        self._told[place] = done


class _Stop(StoppingCriteria):
    """Ends the rows that are finished, or whose caller is gone."""

    def __init__(self, finished: Callable[[], list[bool]]) -> None:
        self._finished = finished

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        # transformers gives rows that have ended padding from then on.
        return torch.tensor(self._finished(), device=input_ids.device)
