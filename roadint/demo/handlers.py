"""What happens when somebody clicks: values of the page in, values of the page out."""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from roadint.demo import views
from roadint.demo.checks import check_number, check_text, check_texts, unexpected
from roadint.demo.engine import MAX_ANSWER, Settings
from roadint.demo.guard import Listening
from roadint.demo.look import inside
from roadint.demo.service import Service
from roadint.errors import RoadError
from roadint.grammar.composition import Composition

CONTROLS = 12  # toggles and sliders; further subspaces go through the expression
MOST_CHOSEN = 32  # compositions of one request
_MOST_OPEN = 16  # checkpoints of one page
_PATIENCE = 10.0  # seconds
_GRADIOS_ID = re.compile("[0-9a-f]{32}")


def offered(names: Sequence[str]) -> list[str]:
    """What can be ticked: the base model, each subspace alone, and all of the first checkpoint's together."""
    first = [name for name in names if "@" not in name]
    return [
        "none",
        *first,
        *([" + ".join(first)] if len(first) > 1 else []),
        *(name for name in names if "@" in name),
    ]


class Handlers:
    """One for the app; `labels` says which checkpoints a page has opened, and so which names are its own.

    Values come as the browser, or whoever says that it is one, sends them: each is checked here. listening: who reads the answers;
    what nobody reads is not gone on with.
    """

    def __init__(self, service: Service, listening: Listening | None = None) -> None:
        self.service, self._listening = service, listening

    def poll(self) -> list[Any]:
        """Status, timer and the four buttons, while the model is loading and once after."""
        service = self.service
        waiting = not (service.ready or service.failed)
        notice = views.notice(service.status, "error" if service.failed else "info")
        return [
            notice,
            gr.Timer(active=waiting),
            *(gr.Button(interactive=service.ready) for _ in range(4)),
        ]

    def arrive(self, request: gr.Request) -> list[Any]:
        """What the address asks for: prompt, c (compositions), k (checkpoints), n, t, seed."""
        asked = request.query_params
        labels: list[str] = []
        for name in asked.getlist("k")[:_MOST_OPEN] if self.service.ready else ():
            try:
                label = self.service.open(name)
            except Exception as error:
                unexpected(error)  # the compositions that need it are told when they are run
            else:
                labels += [label] * (label not in labels)
        offer, wanted = offered(self.service.names(labels)), asked.getlist("c")
        chosen = [each for each in wanted if each in offer] if wanted else offer[:4]
        others = ", ".join(each for each in wanted if each not in offer)
        length, temperature = (
            _number(asked.get("n"), 48, 4, 256),
            _number(asked.get("t"), 0, 0, 1.5),
        )
        values = [length, temperature, int(_number(asked.get("seed"), 0, 0, 2**31))]
        group = gr.CheckboxGroup(offer, value=chosen)
        controls = self.by_text("none", labels)[1:]
        return [
            asked.get("prompt") or "",
            group,
            others,
            *values,
            labels,
            *controls,
            self._opened(labels),
            *self.poll(),
        ]

    def compare(
        self,
        prompt: str,
        chosen: list[str],
        further: str,
        length: float,
        temperature: float,
        seed: float | None,
        highlight: bool,
        labels: list[str],
        request: gr.Request | None = None,
    ) -> Iterator[list[Any]]:
        """Cards, state, the link's query and both exports, as the answers grow."""
        try:
            settings, texts = _settings(length, temperature, seed), _texts(chosen, further)
        except RoadError as error:
            yield [views.notice(str(error), "error"), None, gr.skip(), gr.skip(), gr.skip()]
            return
        for shown, state in self._answers(
            prompt, texts, settings, bool(highlight), labels, request
        ):
            if state is None or not state[1].done:
                yield [shown, state, gr.skip(), gr.skip(), gr.skip()]
                continue
            record = views.record(prompt, state[0], state[1], settings, self._about(labels))
            fields = [("prompt", prompt), *(("c", each) for each in state[0])]
            fields += [("k", each) for each in self.service.sources(labels)]
            fields += [
                ("n", str(settings.max_new_tokens)),
                ("t", f"{settings.temperature:g}"),
                ("seed", str(settings.seed)),
            ]
            yield [
                shown,
                state,
                "?" + urlencode(fields),
                views.as_json(record),
                views.as_markdown(record),
            ]

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
        """One card, as the answer grows."""
        try:
            settings = _settings(length, temperature, seed)
        except RoadError as error:
            yield views.notice(str(error), "error")
            return
        for shown, _ in self._answers(prompt, [expression], settings, False, labels, request):
            yield shown

    def halt(self, state: Any, highlight: bool) -> Any:
        """The cards as they were when somebody stopped them."""
        return (
            views.cards(state[0], state[1], bool(highlight), stopped=True) if state else gr.skip()
        )

    def by_controls(self, labels: list[str], *values: Any) -> list[Any]:
        """The expression of toggles and sliders, and no trouble."""
        names = self.service.names(labels)
        controls = list(zip(names, values[:CONTROLS], values[CONTROLS:], strict=False))
        try:
            strengths = {
                name: check_number(f"the strength of {name}", each, -2, 2)
                for name, on, each in controls
                if on
            }
        except RoadError as error:
            return [gr.skip(), views.notice(str(error), "error")]
        return [str(Composition.parse(strengths, names)), ""]

    def by_text(self, text: str, labels: list[str]) -> list[Any]:
        """The trouble with an expression, toggles and sliders."""
        names = self.service.names(labels)
        try:
            strengths = dict(self.service.parse(text, labels).terms)
        except Exception as error:
            return [
                views.notice(unexpected(error), "error"),
                *(gr.skip() for _ in range(2 * CONTROLS)),
            ]
        beyond = [name for name, strength in strengths.items() if abs(strength) > 2]
        told = (
            views.notice(
                f"The strength of {beyond[0]} is beyond its slider; the expression counts."
            )
            if beyond
            else ""
        )
        shown = [names[place] if place < len(names) else None for place in range(CONTROLS)]
        toggles = [
            gr.Checkbox(name in strengths, label=name or "", visible=name is not None)
            for name in shown
        ]
        bounded = [min(max(strengths.get(name or "", 1.0), -2), 2) for name in shown]
        sliders = [
            gr.Slider(value=value, label=f"strength of {name}", visible=name is not None)
            for name, value in zip(shown, bounded, strict=True)
        ]
        return [told, *toggles, *sliders]

    def look(self, prompt: str, chosen: list[str], further: str, labels: list[str]) -> list[Any]:
        """The prompt's tokens, next tokens, lens and blocks."""
        try:
            return inside(self.service, prompt, _texts(chosen, further), labels)
        except Exception as error:
            return [views.notice(unexpected(error), "error"), "", "", ""]

    def open(self, name: str | None, labels: list[str], chosen: list[str]) -> list[Any]:
        """A notice, the labels, what can be ticked, toggles and sliders; a bad one changes nothing but the notice."""
        try:
            ticked = check_texts("compositions", chosen, MOST_CHOSEN)
            if len(labels) >= _MOST_OPEN:
                raise RoadError(
                    f"{len(labels)} checkpoints are open on this page: reload it to begin anew"
                )
            label = self.service.open(name or "")
        except Exception as error:
            return [
                views.notice(unexpected(error), "error"),
                labels,
                *(gr.skip() for _ in range(1 + 2 * CONTROLS)),
            ]
        labels = [*labels, label] if label not in labels else labels
        offer = offered(self.service.names(labels))
        group = gr.CheckboxGroup(offer, value=[each for each in ticked if each in offer])
        return [self._opened(labels), labels, group, *self.by_text("none", labels)[1:]]

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

        Returns {"model", "checkpoint", "prompt", "settings", "answers", "tokens", "seconds"}, where "answers" is a list of
        {"composition", "text", "language"}.
        """
        try:
            settings = _settings(max_new_tokens, temperature, seed)
            parsed = [
                self.service.parse(each, [])
                for each in check_texts("compositions", compositions, MOST_CHOSEN)
            ]
            update = None
            # Whoever posts a call may come for its answer later; who has come and gone does not want it.
            wanted = self._wanted(request, math.inf)
            for update in self.service.engine.answers(
                prompt, parsed, settings, _visitor(request), wanted
            ):  # noqa: B007
                pass
            if update is None:
                raise RoadError("nobody waits for the answer any more")
        except Exception as error:
            raise gr.Error(unexpected(error), print_exception=False) from None
        return views.record(
            prompt, [str(each) for each in parsed], update, settings, self._about([])
        )

    def _answers(
        self,
        prompt: str,
        texts: Sequence[str],
        settings: Settings,
        highlight: bool,
        labels: Sequence[str],
        request: gr.Request | None,
    ) -> Iterator[tuple[str, Any]]:
        """The cards as they grow, with (names, update); what does not fit is a notice instead."""
        try:
            parsed = list(dict.fromkeys(self.service.parse(each, labels) for each in texts))
            names = [str(each) for each in parsed]
            engine, wanted = self.service.engine, self._wanted(request, time.monotonic())
            with (
                self.service.using(parsed),
                closing(
                    engine.answers(prompt, parsed, settings, _visitor(request), wanted)
                ) as updates,
            ):
                for update in updates:
                    yield views.cards(names, update, highlight), (names, update)
        except Exception as error:
            yield views.notice(unexpected(error), "error"), None

    def _wanted(self, request: gr.Request | None, heard: float) -> Callable[[], bool]:
        """Whether somebody reads this request's answers, or did a moment ago; heard: when for the first time, at the latest."""
        if request is None or self._listening is None:
            return lambda: True
        listening, key = self._listening, request.session_hash

        def wanted() -> bool:
            nonlocal heard
            now = time.monotonic()
            if key in listening:
                heard = now
            return now - heard < _PATIENCE

        return wanted

    def _about(self, labels: Sequence[str]) -> dict[str, Any]:
        about: dict[str, Any] = {
            "model": self.service.model_name,
            "checkpoint": Path(self.service.first).name,
        }
        return {**about, "others": self.service.sources(labels)} if labels else about

    def _opened(self, labels: Sequence[str]) -> str:
        if not labels:
            return views.notice("No further checkpoint is open.")
        names = [name for name in self.service.names(labels) if "@" in name]
        return views.notice(f"Open: {', '.join(labels)}. New names: {', '.join(names)}.")


def _texts(chosen: Any, further: Any) -> list[str]:
    written = check_text("the further expressions", further, MOST_CHOSEN * 100).split(",")
    texts = [
        *check_texts("compositions", chosen, MOST_CHOSEN),
        *(each.strip() for each in written if each.strip()),
    ]
    return check_texts("compositions", texts, MOST_CHOSEN)


def _settings(length: Any, temperature: Any, seed: Any) -> Settings:
    """Of what came in; None is the default, and more new tokens than are possible are as many as are. Raises RoadError."""
    if (
        isinstance(length, (int, float))
        and not isinstance(length, bool)
        and MAX_ANSWER < length < math.inf
    ):
        length = MAX_ANSWER
    given = {"max_new_tokens": length, "temperature": temperature, "seed": seed}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _visitor(request: gr.Request | None) -> str | None:
    """Whose request it is: a page's or a client's, by its session; of one without a session, Gradio's own id, the address."""
    if request is None:
        return None
    session = str(request.session_hash or "")
    if session and not _GRADIOS_ID.fullmatch(session):
        return session
    return f"from {getattr(getattr(request, 'client', None), 'host', 'somewhere')}"


def _number(text: str | None, default: float, low: float, high: float) -> float:
    try:
        number = float(text or default)
    except ValueError:
        return default
    return min(max(number, low), high) if math.isfinite(number) else default
