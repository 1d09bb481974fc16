"""The queue of requests, which shares turns among visitors."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace

from roadint.demo.requests import MAX_ROWS, AnswerRequest, Update
from roadint.errors import RoadError

_MAX_REQUESTS = 64  # of all visitors, those that run included
_MAX_REQUESTS_OF_A_VISITOR = 8
_GATHERING = 0.03  # seconds in which requests of the same moment come together


class RequestQueue:
    """Waiting and running requests, for many threads that ask and one that answers."""

    def __init__(self) -> None:
        self._waiting: list[AnswerRequest] = []
        self._running: list[AnswerRequest] = []
        self._changed = threading.Condition()
        self._turn = 0
        self._last_turns: dict[str, int] = {}  # of visitors with a request that runs or waits

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting) + len(self._running)

    def join(self, request: AnswerRequest) -> int:
        """Add a request.

        Args:
            request: The request, which waits from now on.

        Returns:
            How many requests are ahead.

        Raises:
            RoadError: where too many wait already, of this visitor or of all.
        """
        with self._changed:
            self._check_room(request)
            ahead = len(self._waiting)
            self._waiting.append(request)
            self._changed.notify()
            return ahead

    def begin(self, request: AnswerRequest) -> None:
        """Add a request that runs at once, until `end`.

        Raises:
            RoadError: as `join`.
        """
        with self._changed:
            self._check_room(request)
            self._running.append(request)

    def end(self, request: AnswerRequest) -> None:
        """Close a request that `begin` has added."""
        request.closed.set()
        with self._changed:
            self._running.remove(request)

    def follow(
        self, request: AnswerRequest, ahead: int, wanted: Callable[[], bool]
    ) -> Generator[Update, None, None]:
        """The updates of a request, at least two a second.

        Args:
            request: One that was added.
            ahead: How many requests were ahead of it then.
            wanted: Called repeatedly; False, when nobody waits any more, ends the updates.
        """
        update = Update([""] * len(request.compositions), waiting=ahead)
        if ahead:
            yield update
        while wanted():
            try:
                update = request.newest_update()
            except queue.Empty:
                if update.waiting:
                    update = replace(update, waiting=self.ahead_of(request))
            yield update
            if update.done:
                return

    def ahead_of(self, request: AnswerRequest) -> int:
        """How many requests came before one that waits; 0 when it runs."""
        with self._changed:
            return self._waiting.index(request) if request in self._waiting else 0

    def leave(self, request: AnswerRequest) -> None:
        """Close a request, whether it waits, runs or is done."""
        request.closed.set()
        with self._changed:
            if request in self._waiting:
                self._waiting.remove(request)

    def next_batch(self) -> list[AnswerRequest]:
        """Wait for requests and choose a batch, maybe empty, which runs until `finish_batch`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
        time.sleep(_GATHERING)
        with self._changed:
            self._running = self._choose()
            return list(self._running)

    def finish_batch(self) -> None:
        """Note that the running batch is answered."""
        with self._changed:
            self._running = []

    def _check_room(self, request: AnswerRequest) -> None:
        present = [r for r in self._waiting + self._running if not r.closed.is_set()]
        of_visitor = sum(r.visitor == request.visitor for r in present)
        if request.visitor is not None and of_visitor >= _MAX_REQUESTS_OF_A_VISITOR:
            raise RoadError(
                f"{of_visitor} requests of yours are waiting already: expected at most "
                f"{_MAX_REQUESTS_OF_A_VISITOR}; wait for one, or stop it"
            )
        if len(present) >= _MAX_REQUESTS:
            raise RoadError(
                f"{len(present)} requests of all visitors are waiting: try again in a minute"
            )

    def _choose(self) -> list[AnswerRequest]:
        """The request whose turn it is, and those that can share its batch."""
        chosen: list[AnswerRequest] = []
        rows = 0
        for request in self._in_turn():
            fits = rows + len(request.compositions) <= MAX_ROWS
            if fits and (not chosen or request.shares_batch_with(chosen[0])):
                chosen.append(request)
                rows += len(request.compositions)
        self._waiting = [request for request in self._waiting if request not in chosen]
        self._turn += 1
        still = {request.visitor for request in self._waiting}
        self._last_turns = {who: turn for who, turn in self._last_turns.items() if who in still}
        self._last_turns |= {r.visitor: self._turn for r in chosen if r.visitor is not None}
        return chosen

    def _in_turn(self) -> list[AnswerRequest]:
        """Waiting requests in turn: first requests before second ones, oldest last turns first."""
        counts: Counter[str] = Counter()
        keys: dict[AnswerRequest, tuple[int, int]] = {}
        for request in self._waiting:
            who = request.visitor
            if who is None:
                keys[request] = (0, 0)
            else:
                keys[request] = (counts[who], self._last_turns.get(who, 0))
                counts[who] += 1
        return sorted(self._waiting, key=keys.__getitem__)
