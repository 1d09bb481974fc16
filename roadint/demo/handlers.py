"""The handlers of the page's events: values of the page in, messages for the page out."""

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from roadint.data.sources import load_prompts
from roadint.demo import exports
from roadint.demo.checks import check_text, check_texts
from roadint.demo.failures import message_for_visitors
from roadint.demo.inputs import (
    MAX_COMPOSITIONS,
    number_of_link,
    read_settings,
    visitor_of,
)
from roadint.demo.look import inside
from roadint.demo.messages import answers, colours_of, message
from roadint.demo.service import Service
from roadint.demo.streams import OpenStreams
from roadint.errors import RoadError

_MAX_CHECKPOINTS = 16  # of one page
_PAGES = 1000  # whose stopped questions are kept
_MAX_COLUMNS = 8  # that a link may ask for
_PATIENCE = 10.0  # seconds in which a page that reads no answers may come back
_EXAMPLES = [
    "Write two sentences about the moon.",
    "What is the difference between a cat and a dog?",
    "How do I make tea?",
    "Give three tips for a good night's sleep.",
]


class Handlers:
    """The handlers of all pages; `labels` are the checkpoints that a page has opened.

    Values come from a browser or from any other client; all are checked here.

    Args:
        service: The model and its checkpoints.
        streams: The open streams of answers, so that answers end when nobody reads them; None
            where that is unknown.
    """

    def __init__(self, service: Service, streams: OpenStreams | None = None) -> None:
        self.service, self._streams = service, streams
        self._stopped: dict[str, float] = {}  # by page, the newest question that was stopped

    def poll(self) -> list[Any]:
        """The state of the model, and whether to ask again."""
        service = self.service
        told = message("status", **service.progress())
        return [told, gr.Timer(active=not (service.ready or service.failed))]

    def arrive(self, query: Any) -> list[Any]:
        """Fill a new page with what its address asks for.

        Args:
            query: That of the address, which may have prompt, c (compositions), k (checkpoints, as
                LABEL=ORIGIN), checkpoint and digest (of the first one), n (new tokens), t
                (temperature) and seed.

        Returns:
            The arrival's message, the labels, and what `poll` returns.
        """
        try:
            fields = parse_qs(check_text("the address", query, 100_000).removeprefix("?"))
        except (RoadError, ValueError):
            fields = {}
        asked = fields.get("k", []) if self.service.ready else []
        labels, notices, renamed = self._opened(asked)
        first = self.service.first_name
        wanted, digest = _first(fields, "checkpoint"), _first(fields, "digest")
        if wanted and wanted != first:
            notices.append(f"This link was made with the checkpoint {wanted}; here it is {first}.")
        elif digest and digest != self.service.first_digest:
            notices.append(f"This link was made with another checkpoint of the name {first}.")
        texts, prompt = fields.get("c", [])[:_MAX_COLUMNS], _first(fields, "prompt")
        texts = [with_labels(text, renamed) for text in texts]
        columns = [self._column(text, labels) for text in texts or self._offered()]
        fits = not (notices or any("error" in column for column in columns))
        told = message(
            "arrival",
            prompt=prompt,
            run=bool(prompt and texts and fits),
            compositions=columns,
            settings={
                "max_new_tokens": number_of_link(_first(fields, "n"), 48, 1, 512),
                "temperature": number_of_link(_first(fields, "t"), 0, 0, 100),
                "seed": int(number_of_link(_first(fields, "seed"), 0, 0, 2**31)),
            },
            examples=[*load_prompts("bundled:prompts_paper"), *_EXAMPLES],
            model=self.service.model_name if self.service.ready else "",
            server=self.service.is_served,
            notice=" ".join(notices),
            **self._checkpoints(labels),
        )
        return [told, labels, *self.poll()]

    def compare(
        self,
        prompt: str,
        texts: list[str],
        length: float,
        temperature: float,
        seed: float | None,
        flight: Any,
        labels: list[str],
        request: gr.Request | None = None,
    ) -> Iterator[str]:
        """Answer a prompt through the compositions of some columns, in one batch.

        Args:
            prompt: The instruction.
            texts: Compositions; two may be the same.
            length: How many new tokens.
            temperature: 0 is greedy decoding.
            seed: The seed of sampling.
            flight: What the page calls this question; it comes back with every answer.
            labels: The checkpoints that the page has opened.
            request: Gradio's.

        Yields:
            Messages as the answers grow, or one with an error.
        """
        flight = flight if isinstance(flight, (int, float)) else None
        page = _page_of(request)
        reads = self._wanted(request, time.monotonic())

        def wanted() -> bool:
            return reads() and not (flight and flight <= self._stopped.get(page, 0))

        try:
            settings = read_settings(length, temperature, seed)
            checked = check_texts("compositions", texts, MAX_COMPOSITIONS)
            parsed = [self.service.parse(text, labels) for text in checked]
            distinct = list(dict.fromkeys(parsed))
            rows, names = [distinct.index(each) for each in parsed], list(map(str, parsed))
            visitor = visitor_of(request)
            growing = self.service.answering.answers(prompt, distinct, settings, visitor, wanted)
            with self.service.using(distinct), closing(growing) as updates:
                for update in updates:
                    texts_of = [update.texts[row] for row in rows]
                    yield answers(names, replace(update, texts=texts_of), flight)
        except Exception as error:  # the page goes on, whatever it asked for
            yield message("answers", flight=flight, error=message_for_visitors(error))

    def stop(self, flight: Any, labels: list[str], request: gr.Request | None = None) -> None:
        """End the answers to a page's question, and to those before it.

        Args:
            flight: What the page calls the question.
            labels: The checkpoints that the page has opened.
            request: Gradio's.
        """
        if isinstance(flight, (int, float)):
            page = _page_of(request)
            self._stopped.pop(page, None)
            self._stopped[page] = flight
            if len(self._stopped) > _PAGES:
                del self._stopped[next(iter(self._stopped))]

    def parse(self, text: str, column: Any, labels: list[str]) -> str:
        """What an expression means: its text and the strengths of its terms, or an error."""
        return message("parsed", column=column, **self._column(text, labels))

    def look(self, prompt: str, text: str, column: Any, labels: list[str]) -> str:
        """What a composition does inside, beside the base model; or an error."""
        try:
            return message("inside", column=column, **inside(self.service, prompt, text, labels))
        except Exception as error:  # the page goes on, whatever it asked for
            return message("inside", column=column, error=message_for_visitors(error))

    def open(self, name: str | None, labels: list[str]) -> list[Any]:
        """Open a checkpoint for a page.

        Args:
            name: A path in the folder, or a hub id.
            labels: The checkpoints that the page has opened.

        Returns:
            A message and the labels. A checkpoint that is refused changes nothing.
        """
        try:
            if len(labels) >= _MAX_CHECKPOINTS:
                raise RoadError(f"{len(labels)} checkpoints are open on this page: close one")
            label = self.service.open(name or "")
        except Exception as error:  # the page goes on, whatever the checkpoint holds
            return [message("checkpoints", error=message_for_visitors(error)), labels]
        labels = [*labels, label] if label not in labels else labels
        return [message("checkpoints", opened=label, **self._checkpoints(labels)), labels]

    def close(self, label: Any, labels: list[str]) -> list[Any]:
        """Take a checkpoint off a page; others may have it open."""
        labels = [each for each in labels if each != label]
        return [message("checkpoints", **self._checkpoints(labels)), labels]

    def answers(
        self,
        prompt: str,
        compositions: list[str],
        max_new_tokens: int = 48,
        temperature: float = 0.0,
        seed: int = 0,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:
        """Answer one prompt through several compositions, in one batch.

        Args:
            prompt: The instruction.
            compositions: Expressions over the first checkpoint's subspaces, one an answer.
            max_new_tokens: The length at which an answer ends.
            temperature: 0 is greedy decoding.
            seed: The seed of sampling.
            request: Gradio's.

        Returns:
            {"model", "checkpoint", "prompt", "settings", "answers", "tokens", "seconds"}, where
            "answers" is a list of {"composition", "text", "language"}.

        Raises:
            gr.Error: where something is refused; the message says what.
        """
        try:
            settings = read_settings(max_new_tokens, temperature, seed)
            texts = check_texts("compositions", compositions, MAX_COMPOSITIONS)
            parsed = [self.service.parse(text, []) for text in texts]
            # A client may come for its answer later, but not after it has left.
            wanted = self._wanted(request, math.inf)
            updates = self.service.answering.answers(
                prompt, parsed, settings, visitor_of(request), wanted
            )
            last = deque(updates, maxlen=1)
            if not last:
                raise RoadError("nobody waits for the answer any more")
        except Exception as error:  # a client reads one line, whatever has failed
            raise gr.Error(message_for_visitors(error), print_exception=False) from None
        return exports.record(prompt, list(map(str, parsed)), last[0], settings, self._about())

    def _wanted(self, request: gr.Request | None, heard: float) -> Callable[[], bool]:
        """A function that tells whether somebody reads this request's answers, or just did.

        heard: The time until which nobody has to read.
        """
        if request is None or self._streams is None:
            return lambda: True
        streams, key = self._streams, request.session_hash

        def wanted() -> bool:
            nonlocal heard
            now = time.monotonic()
            if key in streams:
                heard = now
            return now - heard < _PATIENCE

        return wanted

    def _opened(self, asked: Sequence[str]) -> tuple[list[str], list[str], dict[str, str]]:
        """The labels of a link's checkpoints, why some could not be opened, and new labels."""
        labels: list[str] = []
        notices, renamed = [], {}
        for text in asked[:_MAX_CHECKPOINTS]:
            before, has_label, origin = text.partition("=")
            try:
                label = self.service.open(origin if has_label else text)
            except Exception as error:  # the page goes on without it
                notices.append(message_for_visitors(error))
            else:
                labels += [label] * (label not in labels)
                if has_label:
                    renamed[before] = label
        return labels, notices, renamed

    def _offered(self) -> list[str]:
        """The columns of a new page: the base model, and up to two subspaces alone and together."""
        names = self.service.first_names[:2]
        return ["none", *names, *([" + ".join(names)] if len(names) > 1 else [])]

    def _column(self, text: Any, labels: Sequence[str]) -> dict[str, Any]:
        """An expression and its strengths; with an error, where it is not understood."""
        try:
            parsed = self.service.parse(text, labels)
            self.service.check(parsed)
        except Exception as error:  # the page goes on, whatever somebody wrote
            shown = text[:200] if isinstance(text, str) else ""
            return {"text": shown, "strengths": {}, "error": message_for_visitors(error)}
        return {"text": str(parsed), "strengths": dict(parsed.terms)}

    def _checkpoints(self, labels: Sequence[str]) -> dict[str, Any]:
        """What a page may compose with, and from which checkpoints."""
        names = self.service.names(labels)
        return {
            "names": names,
            "colours": colours_of(names),
            "checkpoints": self.service.opened(labels),
            "sources": self.service.checkpoints(),
            "folder": self.service.folder.name,
        }

    def _about(self) -> dict[str, Any]:
        return {"model": self.service.model_name, "checkpoint": self.service.first_name}


def with_labels(text: str, renamed: Mapping[str, str]) -> str:
    """An expression whose checkpoints have other labels here.

    Args:
        text: The expression, as it was elsewhere.
        renamed: Label there → label here.

    Examples:
        >>> with_labels("german@a + 0.5*b", {"a": "b", "b": "a"})
        'german@b + 0.5*a'
    """

    def here(match: re.Match[str]) -> str:
        name, at, label = match.group().rpartition("@")
        return f"{name}{at}{renamed.get(label, label)}"

    return re.sub(r"(?<![\w.])[^\W\d]\w*(@\w+)?", here, text)


def _page_of(request: gr.Request | None) -> str:
    """The session of a page; "" in a call from Python."""
    return str(request.session_hash) if request is not None else ""


def _first(fields: dict[str, list[str]], name: str) -> str:
    """The first value of a query's field; "" where there is none."""
    return fields.get(name, [""])[0]
