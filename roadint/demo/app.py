"""The pages: Compare, Compose, Look inside, Checkpoints. `build(service)` gives the Gradio app, `launch` serves it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from gradio.events import api

from roadint.composition import Composition
from roadint.data.sources import load_prompts
from roadint.demo import look, views
from roadint.demo.engine import Settings
from roadint.demo.service import Service
from roadint.errors import RoadError

_CONTROLS = 12  # toggles and sliders; further subspaces go through the expression
_STYLE = Path(__file__).parent / "style.css"
_COPY = """element.addEventListener('click', event => {
  const button = event.target.closest('.ri-copy');
  if (!button) return;
  navigator.clipboard.writeText(button.closest('article').querySelector('.ri-text').innerText).then(
    () => { button.textContent = 'Copied'; setTimeout(() => { button.textContent = 'Copy'; }, 1500); },
    () => { button.textContent = 'Copying is not allowed here'; });
});"""
_DOWNLOAD = """(text) => { const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: '%s'})); link.download = '%s'; link.click(); }"""
_LINK = "(query) => { const url = location.origin + location.pathname + query; history.replaceState(null, '', url); return url; }"
EXAMPLES = [
    "Write two sentences about the moon.",
    "What is the difference between a cat and a dog?",
    "How do I make tea?",
    "Give three tips for a good night's sleep.",
]


def build(service: Service) -> gr.Blocks:
    """The app on a service, whose model may still be loading."""
    names = service.names([])
    ticked = _offered(names)
    with gr.Blocks(title="roadint", analytics_enabled=False, fill_width=True) as app:
        labels = gr.State([])  # the checkpoints that this page has opened
        last = gr.State(None)  # of the comparison that is shown: names and update
        gr.HTML("<h1 class='ri-title'>roadint <small>subspaces of a language model, turned on and off</small></h1>")
        status = gr.HTML(views.notice(service.status), elem_id="status")
        prompt = gr.Textbox(
            label="Prompt", lines=2, max_lines=6, autofocus=True, elem_id="prompt", placeholder="An instruction, in English"
        )
        gr.Examples(
            [[each] for each in [*load_prompts("bundled:prompts_paper"), *EXAMPLES]],
            [prompt],
            label="The paper's nine prompts, and some of ours",
            examples_per_page=6,
        )
        with gr.Accordion("Generation settings", open=False):
            with gr.Row():
                length = gr.Slider(4, 256, 48, step=4, label="New tokens", elem_id="length")
                temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: greedy)", elem_id="temperature")
                seed = gr.Number(0, precision=0, label="Seed of sampling", elem_id="seed")
            highlight = gr.Checkbox(True, label="Mark what differs from the untouched answer", elem_id="highlight")
        settings = [length, temperature, seed]
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                chosen = gr.CheckboxGroup(ticked, value=ticked, label="Compositions", elem_id="chosen")
                further = gr.Textbox(
                    label="Further expressions, separated by commas",
                    placeholder="0.5*german + english, english - german",
                    elem_id="further",
                )
                with gr.Row():
                    compare = gr.Button("Compare", variant="primary", elem_id="compare", interactive=service.ready)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                    retry = gr.Button("Retry", elem_id="retry")
                answers = gr.HTML(elem_id="answers", js_on_load=_COPY)
                with gr.Row():
                    to_json = gr.Button("Save as JSON", size="sm", elem_id="save-json")
                    to_markdown = gr.Button("Save as Markdown", size="sm", elem_id="save-markdown")
                link = gr.Textbox(label="Link to this comparison", interactive=False, buttons=["copy"], elem_id="link")
                query = gr.Textbox(visible="hidden")
                exported = gr.Textbox(visible="hidden")
                exported_markdown = gr.Textbox(visible="hidden")
            with gr.Tab("Compose", id="compose"):
                toggles, sliders = [], []
                for place in range(_CONTROLS):
                    shown = place < len(names)
                    with gr.Row(elem_classes="ri-control"):
                        name = names[place] if shown else ""
                        toggles.append(gr.Checkbox(False, label=name, visible=shown, min_width=120, elem_id=f"toggle-{place}"))
                        sliders.append(
                            gr.Slider(
                                -2,
                                2,
                                1,
                                step=0.05,
                                label=f"strength of {name}",
                                visible=shown,
                                elem_id=f"strength-{place}",
                                buttons=[],
                            )
                        )
                expression = gr.Textbox(
                    "none",
                    label="Expression",
                    elem_id="expression",
                    info="Stays in step with the controls; can be written too: 0.5*german - english",
                )
                trouble = gr.HTML(elem_id="trouble")
                with gr.Row():
                    answer = gr.Button("Answer", variant="primary", elem_id="answer", interactive=service.ready)
                    stop_answer = gr.Button("Stop", variant="stop", elem_id="stop-answer")
                composed = gr.HTML(elem_id="composed", js_on_load=_COPY)
            with gr.Tab("Look inside", id="inside"):
                gr.Markdown("For the prompt above and the compositions of the first page: what is edited, and what that does.")
                inside = gr.Button("Look inside", variant="primary", elem_id="inside", interactive=service.ready)
                edited = gr.HTML(label="The prompt's tokens", elem_id="edited")
                moved = gr.HTML(elem_id="moved")
                lens = gr.HTML(elem_id="lens")
                angles = gr.Plot(label="Angle and scale of every block", elem_id="angles")
            with gr.Tab("Checkpoints", id="checkpoints"):
                gr.Markdown(
                    f"Beside `{Path(service.first).name}`: one of `{service.folder.name}/`, or a hub id. Its subspaces are NAME@LABEL."
                )
                source = gr.Dropdown(service.found(), label="Checkpoint", allow_custom_value=True, elem_id="source")
                load = gr.Button("Open", variant="primary", elem_id="open", interactive=service.ready)
                opened = gr.HTML(views.notice("No further checkpoint is open."), elem_id="opened")

        ready = gr.Timer(1, active=not service.ready)
        buttons = [compare, answer, inside, load]

        def poll() -> list[Any]:
            waiting = not (service.ready or service.failed)
            kind = "error" if service.failed else "info"
            return [
                views.notice(service.status, kind),
                gr.Timer(active=waiting),
                *(gr.Button(interactive=service.ready) for _ in buttons),
            ]

        def arrive(request: gr.Request) -> list[Any]:
            return [*_from_link(service, request), *poll()]

        asked = [prompt, chosen, further, *settings, highlight, labels]

        def run(
            prompt: str,
            chosen: list[str],
            further: str,
            length: float,
            temperature: float,
            seed: float,
            highlight: bool,
            labels: list[str],
        ) -> Iterator[list[Any]]:
            texts = [*chosen, *(each.strip() for each in further.split(",") if each.strip())]
            wanted = Settings(int(length), float(temperature), int(seed or 0))
            for shown, state in _answers(service, prompt, texts, wanted, highlight, labels):
                yield [shown, state, *_exports(service, prompt, texts, state, wanted, labels)]

        def compose(
            prompt: str, expression: str, length: float, temperature: float, seed: float, labels: list[str]
        ) -> Iterator[Any]:
            for shown, _ in _answers(
                service, prompt, [expression], Settings(int(length), float(temperature), int(seed or 0)), False, labels
            ):
                yield shown

        def halt(state: Any, highlight: bool) -> Any:
            return views.cards(state[0], state[1], highlight, stopped=True) if state else gr.skip()

        private: dict[str, Any] = {"api_visibility": "private"}
        app.load(
            arrive,
            None,
            [prompt, chosen, further, *settings, labels, *toggles, *sliders, opened, status, ready, *buttons],
            **private,
        )
        ready.tick(poll, None, [status, ready, *buttons], show_progress="hidden", **private)
        shown = [answers, last, query, exported, exported_markdown]
        running: list[Any] = [
            event(run, asked, shown, show_progress="hidden", concurrency_limit=32, concurrency_id="answers", **private)
            for event in (compare.click, retry.click, prompt.submit)
        ]
        for each in running:
            each.then(None, [query], [link], js=_LINK, **private)
        stop.click(halt, [last, highlight], [answers], cancels=running, **private)
        to_json.click(None, [exported], None, js=_DOWNLOAD % ("application/json", "comparison.json"), **private)
        to_markdown.click(None, [exported_markdown], None, js=_DOWNLOAD % ("text/markdown", "comparison.md"), **private)
        answering = answer.click(
            compose,
            [prompt, expression, *settings, labels],
            [composed],
            show_progress="hidden",
            concurrency_limit=32,
            concurrency_id="answers",
            **private,
        )
        stop_answer.click(None, None, None, cancels=[answering], **private)

        def by_controls(labels: list[str], *values: Any) -> list[Any]:
            on, strengths = values[:_CONTROLS], values[_CONTROLS:]
            terms = {name: float(s) for name, o, s in zip(service.names(labels), on, strengths, strict=False) if o}
            return [str(Composition.parse(terms, service.names(labels))), ""]

        def by_text(text: str, labels: list[str]) -> list[Any]:
            return _controls(service, text, labels)

        for place, (toggle, slider) in enumerate(zip(toggles, sliders, strict=True)):
            toggle.input(by_controls, [labels, *toggles, *sliders], [expression, trouble], show_progress="hidden", **private)
            slider.input(lambda value: bool(value), slider, toggles[place], show_progress="hidden", **private).then(
                by_controls, [labels, *toggles, *sliders], [expression, trouble], show_progress="hidden", **private
            )
        for changed in (expression.submit, expression.blur):
            changed(by_text, [expression, labels], [trouble, *toggles, *sliders], show_progress="hidden", **private)

        def look_inside(prompt: str, chosen: list[str], further: str, labels: list[str]) -> list[Any]:
            texts = [*chosen, *(each.strip() for each in further.split(",") if each.strip())]
            try:
                return look.inside(service, prompt, texts, labels)
            except RoadError as error:
                return [views.notice(str(error), "error"), "", "", None]

        inside.click(look_inside, [prompt, chosen, further, labels], [edited, moved, lens, angles], concurrency_limit=2, **private)

        def open_checkpoint(name: str | None, labels: list[str], chosen: list[str]) -> list[Any]:
            try:
                label = service.open(name or "")
            except RoadError as error:
                return [views.notice(str(error), "error"), labels, *(gr.skip() for _ in range(1 + 2 * _CONTROLS))]
            labels = [*labels, label] if label not in labels else labels
            return [
                _opened(service, labels),
                labels,
                gr.CheckboxGroup(_offered(service.names(labels)), value=chosen),
                *_controls(service, "none", labels)[1:],
            ]

        load.click(open_checkpoint, [source, labels, chosen], [opened, labels, chosen, *toggles, *sliders], **private)

        def api_answers(
            prompt: str, compositions: list[str], max_new_tokens: int = 48, temperature: float = 0.0, seed: int = 0
        ) -> dict[str, Any]:
            """Answer one prompt through several compositions, in one batch.

            Returns {"model", "checkpoint", "prompt", "settings", "answers", "tokens", "seconds"}; an answer is {"composition", "text",
            "language"}.
            """
            wanted = Settings(int(max_new_tokens), float(temperature), int(seed))
            try:
                parsed = [service.parse(each, []) for each in compositions]
                *_, update = service.engine.answers(prompt, parsed, wanted)
            except RoadError as error:
                raise gr.Error(str(error)) from None
            return views.record(prompt, [str(each) for each in parsed], update, wanted, _about(service, []))

        api(api_answers, api_name="answers", concurrency_limit=32)
    return app  # type: ignore[no-any-return]


def launch(service: Service, **arguments: Any) -> Any:
    """Serve the app; arguments: of Gradio's launch. Binds to loopback unless told otherwise."""
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched
    settings: dict[str, Any] = {
        "server_name": "127.0.0.1",
        "css": _STYLE.read_text(),
        "theme": gr.themes.Default(**fonts),
        "footer_links": ["api"],
        "ssr_mode": False,
    }
    return build(service).queue(default_concurrency_limit=16, max_size=64).launch(**{**settings, **arguments})


def _answers(
    service: Service, prompt: str, texts: Sequence[str], settings: Settings, highlight: bool, labels: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """The cards as they grow, with (names, update); what does not fit is one card that says so."""
    try:
        parsed = list(dict.fromkeys(service.parse(each, labels) for each in texts))
        names = [str(each) for each in parsed]
        for update in service.engine.answers(prompt, parsed, settings):
            yield views.cards(names, update, highlight), (names, update)
    except RoadError as error:
        yield views.notice(str(error), "error"), None


def _exports(
    service: Service, prompt: str, texts: Sequence[str], state: Any, settings: Settings, labels: Sequence[str]
) -> list[Any]:
    """The link's query and both exports, once the answers are whole."""
    if state is None or not state[1].done:
        return [gr.skip(), gr.skip(), gr.skip()]
    comparison = views.record(prompt, state[0], state[1], settings, _about(service, labels))
    fields = [("prompt", prompt), *(("c", each) for each in state[0]), *(("k", each) for each in service.sources(labels))]
    fields += [("n", str(settings.max_new_tokens)), ("t", f"{settings.temperature:g}"), ("seed", str(settings.seed))]
    return ["?" + urlencode(fields), views.as_json(comparison), views.as_markdown(comparison)]


def _about(service: Service, labels: Sequence[str]) -> dict[str, Any]:
    about: dict[str, Any] = {"model": str(service.engine.road.model.name_or_path), "checkpoint": Path(service.first).name}
    return {**about, "others": service.sources(labels)} if labels else about


def _from_link(service: Service, request: gr.Request) -> list[Any]:
    """What the address asks for: prompt, c (compositions), k (checkpoints), n, t, seed."""
    asked = request.query_params
    labels: list[str] = []
    for name in asked.getlist("k") if service.ready else ():
        try:
            labels.append(service.open(name))
        except RoadError:
            continue  # the compositions that need it are told when they are run
    offered = _offered(service.names(labels))
    wanted = asked.getlist("c")
    chosen = [each for each in wanted if each in offered] if wanted else offered[:4]
    others = ", ".join(each for each in wanted if each not in offered)
    numbers = [
        _number(asked.get("n"), 48, 4, 256),
        _number(asked.get("t"), 0.0, 0, 1.5),
        int(_number(asked.get("seed"), 0, 0, 2**31)),
    ]
    group = gr.CheckboxGroup(offered, value=chosen)
    return [
        asked.get("prompt") or "",
        group,
        others,
        *numbers,
        labels,
        *_controls(service, "none", labels)[1:],
        _opened(service, labels),
    ]


def _number(text: str | None, default: float, low: float, high: float) -> float:
    try:
        return min(max(float(text or default), low), high)
    except ValueError:
        return default


def _offered(names: Sequence[str]) -> list[str]:
    """What can be ticked: the base model, each subspace alone, and all of the first checkpoint's together."""
    first = [name for name in names if "@" not in name]
    return ["none", *first, *([" + ".join(first)] if len(first) > 1 else []), *(name for name in names if "@" in name)]


def _controls(service: Service, text: str, labels: Sequence[str]) -> list[Any]:
    """What the controls show for an expression: a notice, the toggles, the sliders."""
    names = service.names(labels)
    try:
        strengths = dict(service.parse(text, labels).terms)
    except RoadError as error:
        return [views.notice(str(error), "error"), *(gr.skip() for _ in range(2 * _CONTROLS))]
    beyond = [name for name, strength in strengths.items() if abs(strength) > 2]
    told = views.notice(f"The strength of {beyond[0]} is outside of the slider; the expression counts.") if beyond else ""
    toggles, sliders = [], []
    for place in range(_CONTROLS):
        name = names[place] if place < len(names) else None
        toggles.append(gr.Checkbox(name in strengths, label=name or "", visible=name is not None))
        value = min(max(strengths.get(name or "", 1.0), -2), 2)
        sliders.append(gr.Slider(value=value, label=f"strength of {name}", visible=name is not None))
    return [told, *toggles, *sliders]


def _opened(service: Service, labels: Sequence[str]) -> str:
    if not labels:
        return views.notice("No further checkpoint is open.")
    return views.notice(
        f"Open: {', '.join(labels)}. Compose with {', '.join(name for name in service.names(labels) if '@' in name)}."
    )
