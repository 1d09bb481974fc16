"""Answers of a server, for many callers at once; the server forms the batches.

They are decoded as the model's here, but for one thing: vLLM does not forbid the repetition of five
tokens, so that answers which repeat themselves differ.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.reading import read
from roadint.data.prompts import render
from roadint.demo.failures import message_for_visitors
from roadint.demo.requests import (
    NOTHING_ASKED,
    AnswerRequest,
    AnswerSettings,
    Update,
    check_question,
)
from roadint.demo.server_client import ServerClient
from roadint.demo.waiting import RequestQueue
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.composition import Composition
from roadint.model.road_model import PAPER_DECODING


class ServerAnswers:
    """Answers of a server's model.

    Args:
        client: The server's client.
        first: The checkpoint whose names have no label, which the server has to serve.

    Raises:
        RoadError: where it serves another one, or does not answer.

    Attributes:
        lock: Held by whoever changes which checkpoints there are.
        requests: The requests that run.
    """

    def __init__(self, client: ServerClient, first: Checkpoint) -> None:
        served = client.checkpoints()
        told = served.get("")
        if told is None or told["fingerprint"] != first.config["sha256"]:
            names = listing(name for other in served.values() for name in other["names"])
            raise RoadError(
                f"the server at {client.url} does not serve {first.folder} without a label: "
                f"expected that very checkpoint, it has others, with {names}"
            )
        self._client, self._template = client, first.config["template"]
        self.model_name = client.model()
        self.lock, self.requests = threading.Lock(), RequestQueue()
        self._loop = asyncio.new_event_loop()
        threading.Thread(
            target=self._loop.run_forever, daemon=True, name="roadint-demo-server"
        ).start()

    @property
    def about(self) -> str:
        """One line for people."""
        return f"{self.model_name}, served by vLLM at {self._client.url}"

    def answers(
        self,
        prompt: str,
        compositions: Sequence[Composition],
        settings: AnswerSettings,
        visitor: str | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Generator[Update, None, None]:
        """As `Answering.answers`."""
        check_question(prompt, compositions)
        if not compositions:
            raise RoadError(NOTHING_ASKED)
        request = AnswerRequest(prompt, list(compositions), settings, visitor)
        self.requests.begin(request)
        running = asyncio.run_coroutine_threadsafe(self._run(request), self._loop)
        try:
            yield from self.requests.follow(request, 0, wanted)
        finally:
            running.cancel()
            self.requests.end(request)

    def add_checkpoint(self, path: Path, name: str, label: str) -> list[str]:
        """Let the server load a checkpoint, where it does not serve it already.

        Args:
            path: The folder of its files here.
            name: Its path in the server's folder, or its hub id.
            label: Compositions use its names as "name@label".

        Returns:
            The names.

        Raises:
            RoadError: where the server refuses it, or has another one of that label or path.
        """
        fingerprint = read(path).config["sha256"]
        told = self._client.checkpoints().get(label)
        if told is None:
            told = self._client.load(label, name)
            if told["fingerprint"] != fingerprint:
                self._client.unload(label)
                raise RoadError(f"{quoted(name)} is another checkpoint at the server than here")
        elif told["fingerprint"] != fingerprint:
            raise RoadError(f"the server has another checkpoint of the label {quoted(label)}")
        return list(told["names"])

    def remove_checkpoint(self, label: str) -> None:
        """Let the server forget a checkpoint."""
        self._client.unload(label)

    async def _run(self, request: AnswerRequest) -> None:
        """Answer a request; its updates, or what went wrong, go to its queue."""
        growing = _Growing(request)
        tasks = [
            asyncio.create_task(self._answer(request, row, growing))
            for row in range(len(request.compositions))
        ]
        try:
            await asyncio.gather(*tasks)
            growing.tell(done=True)
        except Exception as error:  # whatever the server or the network does
            request.updates.put(RoadError(message_for_visitors(error)))
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, request: AnswerRequest, row: int, growing: "_Growing") -> None:
        settings = request.settings
        asked: dict[str, Any] = {
            "model": self.model_name,
            "vllm_xargs": {"roadint": str(request.compositions[row])},
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed & (2**63 - 1),  # vLLM takes -1 for none
            "repetition_penalty": PAPER_DECODING["repetition_penalty"],
        }
        route = "chat/completions" if self._template == "chat" else "completions"
        if self._template == "chat":
            asked["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            asked["prompt"] = render(self._template, request.prompt, None)  # type: ignore[arg-type]
        async for piece in self._client.answer(route, asked):
            growing.add(row, piece.text, piece.tokens)


class _Growing:
    """The answers of one request as they grow."""

    def __init__(self, request: AnswerRequest) -> None:
        self._updates, self._started = request.updates, time.perf_counter()
        self._texts = [""] * len(request.compositions)
        self._tokens = [0] * len(request.compositions)

    def add(self, row: int, text: str, tokens: int) -> None:
        self._texts[row] += text
        self._tokens[row] = max(self._tokens[row], tokens)
        self.tell(done=False)

    def tell(self, *, done: bool) -> None:
        seconds = time.perf_counter() - self._started
        texts = [text.strip() for text in self._texts]
        self._updates.put(Update(texts, sum(self._tokens), seconds, done))
