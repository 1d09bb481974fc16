"""The handlers of the page's events: values of the page in, values of the page out."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from roadint.demo import exports, views
from roadint.demo.checks import check_texts
from roadint.demo.controls import CONTROLS, MAX_STRENGTH, controls_of, expression_of, offered
from roadint.demo.failures import message_for_visitors
from roadint.demo.inputs import (
    MAX_COMPOSITIONS,
    number_of_link,
    read_compositions,
    read_settings,
    visitor_of,
)
from roadint.demo.look import inside
from roadint.demo.requests import AnswerSettings, Update
from roadint.demo.service import Service
from roadint.demo.streams import OpenStreams
from roadint.errors import RoadError

_MAX_CHECKPOINTS = 16  # of one page
_PATIENCE = 10.0  # seconds in which a page that reads no answers may come back
_Comparison = tuple[list[str], Update]  # what a page remembers: compositions and their answers


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

    def poll(self) -> list[Any]:
        """Update status, timer and the four buttons, while the model loads."""
        service = self.service
        waiting = not (service.ready or service.failed)
        notice = views.notice(service.status, "error" if service.failed else "info")
        buttons = [gr.Button(interactive=service.ready) for _ in range(4)]
        return [notice, gr.Timer(active=waiting), *buttons]

    def arrive(self, request: gr.Request) -> list[Any]:
        """Fill a new page with what its address asks for.

        Args:
            request: Gradio's, whose query may have prompt, c (compositions), k (checkpoints), n
                (new tokens), t (temperature) and seed.

        Returns:
            Prompt, compositions, further expressions, settings, labels, toggles and sliders, the
            notice about checkpoints, and what `poll` returns.
        """
        query = request.query_params
        labels: list[str] = []
        for name in query.getlist("k")[:_MAX_CHECKPOINTS] if self.service.ready else ():
            try:
                label = self.service.open(name)
            except Exception as error:  # its compositions are refused when they run, with a reason
                message_for_visitors(error)
            else:
                labels += [label] * (label not in labels)
        names = self.service.names(labels)
        offer, wanted = offered(names), query.getlist("c")
        ticked = [text for text in wanted if text in offer] if wanted else offer[:4]
        return [
            query.get("prompt") or "",
            gr.CheckboxGroup(offer, value=ticked),
            ", ".join(text for text in wanted if text not in offer),
            number_of_link(query.get("n"), 48, 4, 256),
            number_of_link(query.get("t"), 0, 0, 1.5),
            int(number_of_link(query.get("seed"), 0, 0, 2**31)),
            labels,
            *controls_of(names, {}),
            self._notice_of_opened(labels),
            *self.poll(),
        ]

    def compare(
        self,
        prompt: str,
        ticked: list[str],
        further: str,
        length: float,
        temperature: float,
        seed: float | None,
        highlight: bool,
        labels: list[str],
        request: gr.Request | None = None,
    ) -> Iterator[list[Any]]:
        """Answer a prompt through the compositions of the first tab.

        Args:
            prompt: The instruction.
            ticked: Compositions that are ticked.
            further: Expressions, separated by commas.
            length: How many new tokens.
            temperature: 0 is greedy decoding.
            seed: The seed of sampling.
            highlight: Whether to mark what differs from the untouched answer.
            labels: The checkpoints that the page has opened.
            request: Gradio's.

        Yields:
            Cards and comparison as the answers grow; at the end the link's query, and the exports.
        """
        try:
            settings = read_settings(length, temperature, seed)
            texts = read_compositions(ticked, further)
        except RoadError as error:
            yield [views.notice(str(error), "error"), None, gr.skip(), gr.skip(), gr.skip()]
            return
        answers = self._answers(prompt, texts, settings, bool(highlight), labels, request)
        for shown, comparison in answers:
            if comparison is None or not comparison[1].done:
                yield [shown, comparison, gr.skip(), gr.skip(), gr.skip()]
                continue
            record = exports.record(prompt, *comparison, settings, self._about(labels))
            query = self._query(prompt, comparison[0], settings, labels)
            files = [exports.as_json(record), exports.as_markdown(record)]
            yield [shown, comparison, query, *files]

    def compose(
        self,
        prompt: str,
        expression: str,
        length: float,
        temperature: float,
        seed: float | None,
        labels: list[str],
        request: gr.Request | None = None,
    ) -> Iterator[str]:
        """Answer a prompt through the expression of the second tab.

        Args:
            prompt: The instruction.
            expression: The composition.
            length: How many new tokens.
            temperature: 0 is greedy decoding.
            seed: The seed of sampling.
            labels: The checkpoints that the page has opened.
            request: Gradio's.

        Yields:
            A card, as the answer grows.
        """
        try:
            settings = read_settings(length, temperature, seed)
        except RoadError as error:
            yield views.notice(str(error), "error")
            return
        for shown, _ in self._answers(prompt, [expression], settings, False, labels, request):
            yield shown

    def halt(self, comparison: _Comparison | None, highlight: bool) -> Any:
        """The cards as they are when a visitor stops them."""
        if not comparison:
            return gr.skip()
        return views.cards(*comparison, bool(highlight), stopped=True)

    def by_controls(self, labels: list[str], *values: Any) -> list[Any]:
        """The expression of toggles and sliders, and a notice where they are refused."""
        try:
            return [expression_of(self.service.names(labels), values), ""]
        except RoadError as error:
            return [gr.skip(), views.notice(str(error), "error")]

    def by_text(self, text: str, labels: list[str]) -> list[Any]:
        """A notice where an expression is refused or beyond a slider; toggles and sliders."""
        try:
            strengths = dict(self.service.parse(text, labels).terms)
        except Exception as error:  # the page goes on, whatever somebody wrote
            notice = views.notice(message_for_visitors(error), "error")
            return [notice, *(gr.skip() for _ in range(2 * CONTROLS))]
        beyond = [name for name, strength in strengths.items() if abs(strength) > MAX_STRENGTH]
        notice = ""
        if beyond:
            notice = views.notice(
                f"The strength of {beyond[0]} is beyond its slider; the expression counts."
            )
        return [notice, *controls_of(self.service.names(labels), strengths)]

    def look(self, prompt: str, ticked: list[str], further: str, labels: list[str]) -> list[Any]:
        """The prompt's tokens, next tokens, lens and blocks; or a notice, and nothing else."""
        try:
            return inside(self.service, prompt, read_compositions(ticked, further), labels)
        except Exception as error:  # the page goes on, whatever it asked for
            return [views.notice(message_for_visitors(error), "error"), "", "", ""]

    def open(self, name: str | None, labels: list[str], ticked: list[str]) -> list[Any]:
        """Open a checkpoint for a page.

        Args:
            name: A path in the folder, or a hub id.
            labels: The checkpoints that the page has opened.
            ticked: Compositions that are ticked.

        Returns:
            A notice, the labels, what can be ticked, toggles and sliders. A checkpoint that is
            refused changes nothing but the notice.
        """
        try:
            chosen = read_compositions(ticked)
            if len(labels) >= _MAX_CHECKPOINTS:
                raise RoadError(
                    f"{len(labels)} checkpoints are open on this page: reload it to begin anew"
                )
            label = self.service.open(name or "")
        except Exception as error:  # the page goes on, whatever the checkpoint holds
            notice = views.notice(message_for_visitors(error), "error")
            return [notice, labels, *(gr.skip() for _ in range(1 + 2 * CONTROLS))]
        labels = [*labels, label] if label not in labels else labels
        names = self.service.names(labels)
        offer = offered(names)
        group = gr.CheckboxGroup(offer, value=[text for text in chosen if text in offer])
        return [self._notice_of_opened(labels), labels, group, *controls_of(names, {})]

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
        return exports.record(prompt, list(map(str, parsed)), last[0], settings, self._about([]))

    def _answers(
        self,
        prompt: str,
        texts: Sequence[str],
        settings: AnswerSettings,
        highlight: bool,
        labels: Sequence[str],
        request: gr.Request | None,
    ) -> Iterator[tuple[str, _Comparison | None]]:
        """The cards as they grow, and the comparison; a notice and None for what is refused."""
        try:
            parsed = list(dict.fromkeys(self.service.parse(text, labels) for text in texts))
            names = list(map(str, parsed))
            visitor, wanted = visitor_of(request), self._wanted(request, time.monotonic())
            answers = self.service.answering.answers(prompt, parsed, settings, visitor, wanted)
            with self.service.using(parsed), closing(answers) as updates:
                for update in updates:
                    yield views.cards(names, update, highlight), (names, update)
        except Exception as error:  # the page goes on, whatever it asked for
            yield views.notice(message_for_visitors(error), "error"), None

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

    def _query(
        self, prompt: str, names: list[str], settings: AnswerSettings, labels: list[str]
    ) -> str:
        """The query of a link, which `arrive` reads."""
        fields = [("prompt", prompt), *(("c", name) for name in names)]
        fields += [("k", origin) for origin in self.service.origins(labels)]
        fields += [
            ("n", str(settings.max_new_tokens)),
            ("t", f"{settings.temperature:g}"),
            ("seed", str(settings.seed)),
        ]
        return "?" + urlencode(fields)

    def _about(self, labels: Sequence[str]) -> dict[str, Any]:
        about: dict[str, Any] = {
            "model": self.service.model_name,
            "checkpoint": Path(self.service.first).name,
        }
        return {**about, "others": self.service.origins(labels)} if labels else about

    def _notice_of_opened(self, labels: Sequence[str]) -> str:
        if not labels:
            return views.notice("No further checkpoint is open.")
        names = [name for name in self.service.names(labels) if "@" in name]
        return views.notice(f"Open: {', '.join(labels)}. New names: {', '.join(names)}.")
