"""What happens when somebody clicks: values of the page in, values of the page out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from roadint.composition import Composition
from roadint.demo import views
from roadint.demo.engine import Settings
from roadint.demo.look import inside
from roadint.demo.service import Service
from roadint.errors import RoadError

CONTROLS = 12  # toggles and sliders; further subspaces go through the expression


def offered(names: Sequence[str]) -> list[str]:
    """What can be ticked: the base model, each subspace alone, and all of the first checkpoint's together."""
    first = [name for name in names if "@" not in name]
    return ["none", *first, *([" + ".join(first)] if len(first) > 1 else []), *(name for name in names if "@" in name)]


class Handlers:
    """One for the app; `labels` says which checkpoints a page has opened, and so which names are its own."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def poll(self) -> list[Any]:
        """Status, timer and the four buttons, while the model is loading and once after."""
        service = self.service
        waiting = not (service.ready or service.failed)
        notice = views.notice(service.status, "error" if service.failed else "info")
        return [notice, gr.Timer(active=waiting), *(gr.Button(interactive=service.ready) for _ in range(4))]

    def arrive(self, request: gr.Request) -> list[Any]:
        """What the address asks for: prompt, c (compositions), k (checkpoints), n, t, seed."""
        asked = request.query_params
        labels: list[str] = []
        for name in asked.getlist("k") if self.service.ready else ():
            try:
                labels.append(self.service.open(name))
            except RoadError:
                continue  # the compositions that need it are told when they are run
        offer, wanted = offered(self.service.names(labels)), asked.getlist("c")
        chosen = [each for each in wanted if each in offer] if wanted else offer[:4]
        others = ", ".join(each for each in wanted if each not in offer)
        length, temperature = _number(asked.get("n"), 48, 4, 256), _number(asked.get("t"), 0, 0, 1.5)
        values = [length, temperature, int(_number(asked.get("seed"), 0, 0, 2**31))]
        group = gr.CheckboxGroup(offer, value=chosen)
        controls = self.by_text("none", labels)[1:]
        return [asked.get("prompt") or "", group, others, *values, labels, *controls, self._opened(labels), *self.poll()]

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
    ) -> Iterator[list[Any]]:
        """Cards, state, the link's query and both exports, as the answers grow."""
        settings = _settings(length, temperature, seed)
        for shown, state in self._answers(prompt, _texts(chosen, further), settings, highlight, labels):
            if state is None or not state[1].done:
                yield [shown, state, gr.skip(), gr.skip(), gr.skip()]
                continue
            record = views.record(prompt, state[0], state[1], settings, self._about(labels))
            fields = [("prompt", prompt), *(("c", each) for each in state[0])]
            fields += [("k", each) for each in self.service.sources(labels)]
            fields += [("n", str(settings.max_new_tokens)), ("t", f"{temperature:g}"), ("seed", str(settings.seed))]
            yield [shown, state, "?" + urlencode(fields), views.as_json(record), views.as_markdown(record)]

    def compose(
        self, prompt: str, expression: str, length: float, temperature: float, seed: float | None, labels: list[str]
    ) -> Iterator[str]:
        """One card, as the answer grows."""
        for shown, _ in self._answers(prompt, [expression], _settings(length, temperature, seed), False, labels):
            yield shown

    def halt(self, state: Any, highlight: bool) -> Any:
        """The cards as they were when somebody stopped them."""
        return views.cards(state[0], state[1], highlight, stopped=True) if state else gr.skip()

    def by_controls(self, labels: list[str], *values: Any) -> list[str]:
        """The expression of toggles and sliders, and no trouble."""
        names = self.service.names(labels)
        controls = zip(names, values[:CONTROLS], values[CONTROLS:], strict=False)
        return [str(Composition.parse({name: float(strength) for name, on, strength in controls if on}, names)), ""]

    def by_text(self, text: str, labels: list[str]) -> list[Any]:
        """The trouble with an expression, toggles and sliders."""
        names = self.service.names(labels)
        try:
            strengths = dict(self.service.parse(text, labels).terms)
        except RoadError as error:
            return [views.notice(str(error), "error"), *(gr.skip() for _ in range(2 * CONTROLS))]
        beyond = [name for name, strength in strengths.items() if abs(strength) > 2]
        told = views.notice(f"The strength of {beyond[0]} is beyond its slider; the expression counts.") if beyond else ""
        shown = [names[place] if place < len(names) else None for place in range(CONTROLS)]
        toggles = [gr.Checkbox(name in strengths, label=name or "", visible=name is not None) for name in shown]
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
        except RoadError as error:
            return [views.notice(str(error), "error"), "", "", ""]

    def open(self, name: str | None, labels: list[str], chosen: list[str]) -> list[Any]:
        """A notice, the labels, what can be ticked, toggles and sliders; a bad one changes nothing but the notice."""
        try:
            label = self.service.open(name or "")
        except RoadError as error:
            return [views.notice(str(error), "error"), labels, *(gr.skip() for _ in range(1 + 2 * CONTROLS))]
        labels = [*labels, label] if label not in labels else labels
        group = gr.CheckboxGroup(offered(self.service.names(labels)), value=chosen)
        return [self._opened(labels), labels, group, *self.by_text("none", labels)[1:]]

    def answers(
        self, prompt: str, compositions: list[str], max_new_tokens: int = 48, temperature: float = 0.0, seed: int = 0
    ) -> dict[str, Any]:
        """Answer one prompt through several compositions, in one batch.

        Returns {"model", "checkpoint", "prompt", "settings", "answers", "tokens", "seconds"}, where "answers" is a list of
        {"composition", "text", "language"}.
        """
        settings = _settings(max_new_tokens, temperature, seed)
        try:
            parsed = [self.service.parse(each, []) for each in compositions]
            *_, update = self.service.engine.answers(prompt, parsed, settings)
        except RoadError as error:
            raise gr.Error(str(error)) from None
        return views.record(prompt, [str(each) for each in parsed], update, settings, self._about([]))

    def _answers(
        self, prompt: str, texts: Sequence[str], settings: Settings, highlight: bool, labels: Sequence[str]
    ) -> Iterator[tuple[str, Any]]:
        """The cards as they grow, with (names, update); what does not fit is a notice instead."""
        try:
            parsed = list(dict.fromkeys(self.service.parse(each, labels) for each in texts))
            names = [str(each) for each in parsed]
            for update in self.service.engine.answers(prompt, parsed, settings):
                yield views.cards(names, update, highlight), (names, update)
        except RoadError as error:
            yield views.notice(str(error), "error"), None

    def _about(self, labels: Sequence[str]) -> dict[str, Any]:
        model = str(self.service.engine.road.model.name_or_path)
        about: dict[str, Any] = {"model": model, "checkpoint": Path(self.service.first).name}
        return {**about, "others": self.service.sources(labels)} if labels else about

    def _opened(self, labels: Sequence[str]) -> str:
        if not labels:
            return views.notice("No further checkpoint is open.")
        names = [name for name in self.service.names(labels) if "@" in name]
        return views.notice(f"Open: {', '.join(labels)}. New names: {', '.join(names)}.")


def _texts(chosen: Sequence[str], further: str) -> list[str]:
    return [*chosen, *(each.strip() for each in further.split(",") if each.strip())]


def _settings(length: float, temperature: float, seed: float | None) -> Settings:
    return Settings(min(max(int(length), 1), 512), max(float(temperature), 0.0), int(seed or 0))


def _number(text: str | None, default: float, low: float, high: float) -> float:
    try:
        return min(max(float(text or default), low), high)
    except ValueError:
        return default
