"""What the page holds, in order; what it does is in roadint.demo.handlers."""

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from roadint.data.sources import load_prompts
from roadint.demo import views
from roadint.demo.handlers import CONTROLS, offered
from roadint.demo.service import Service

_COPY = """element.addEventListener('click', event => {
  const button = event.target.closest('.ri-copy');
  if (!button) return;
  navigator.clipboard.writeText(button.closest('article').querySelector('.ri-text').innerText).then(
    () => { button.textContent = 'Copied'; setTimeout(() => { button.textContent = 'Copy'; }, 1500); },
    () => { button.textContent = 'Copying is not allowed here'; });
});"""
_EXAMPLES = [
    "Write two sentences about the moon.",
    "What is the difference between a cat and a dog?",
    "How do I make tea?",
    "Give three tips for a good night's sleep.",
]


@dataclass
class Page:
    """The components, by what they are for."""

    labels: Any  # state: the checkpoints that this page has opened
    last: Any  # state: names and update of the comparison that is shown
    status: Any
    prompt: Any
    settings: list[Any]
    highlight: Any
    chosen: Any = None
    further: Any = None
    compare: Any = None
    stop: Any = None
    retry: Any = None
    answers: Any = None
    to_json: Any = None
    to_markdown: Any = None
    link: Any = None
    query: Any = None
    exports: list[Any] = field(default_factory=list)
    toggles: list[Any] = field(default_factory=list)
    sliders: list[Any] = field(default_factory=list)
    expression: Any = None
    trouble: Any = None
    answer: Any = None
    stop_answer: Any = None
    composed: Any = None
    look: Any = None
    seen: list[Any] = field(default_factory=list)
    source: Any = None
    open: Any = None
    opened: Any = None

    @property
    def controls(self) -> list[Any]:
        """Toggles, then sliders."""
        return [*self.toggles, *self.sliders]

    @property
    def actions(self) -> list[Any]:
        """The buttons that wait for the model."""
        return [self.compare, self.answer, self.look, self.open]


def layout(service: Service) -> Page:
    """Lay out the page, inside of a gr.Blocks."""
    labels, last = gr.State([]), gr.State(None)
    gr.HTML(
        "<h1 class='ri-title'>roadint <small>subspaces of a language model, turned on and off</small></h1>"
    )
    status = gr.HTML(views.notice(service.status), elem_id="status")
    prompt = gr.Textbox(
        label="Prompt",
        lines=2,
        max_lines=6,
        autofocus=True,
        elem_id="prompt",
        placeholder="An instruction, in English",
    )
    examples = [[each] for each in [*load_prompts("bundled:prompts_paper"), *_EXAMPLES]]
    gr.Examples(
        examples, [prompt], label="The paper's nine prompts, and some of ours", examples_per_page=6
    )
    with gr.Accordion("Generation settings", open=False):
        with gr.Row():
            settings = [
                gr.Slider(4, 256, 48, step=4, label="New tokens", elem_id="length"),
                gr.Slider(
                    0, 1.5, 0, step=0.1, label="Temperature (0: greedy)", elem_id="temperature"
                ),
                gr.Number(0, precision=0, label="Seed of sampling", elem_id="seed"),
            ]
        highlight = gr.Checkbox(
            True, label="Mark what differs from the untouched answer", elem_id="highlight"
        )
    page = Page(labels, last, status, prompt, settings, highlight)
    with gr.Tabs():
        with gr.Tab("Compare", id="compare"):
            _compare(page, service)
        with gr.Tab("Compose", id="compose"):
            _compose(page, service)
        with gr.Tab("Look inside", id="inside"):
            _look(page, service)
        with gr.Tab("Checkpoints", id="checkpoints"):
            _checkpoints(page, service)
    return page


def _compare(page: Page, service: Service) -> None:
    ticked = offered(service.names([]))
    page.chosen = gr.CheckboxGroup(ticked, value=ticked, label="Compositions", elem_id="chosen")
    page.further = gr.Textbox(
        label="Further expressions, separated by commas",
        placeholder="0.5*german + english, english - german",
        elem_id="further",
    )
    with gr.Row():
        page.compare = gr.Button(
            "Compare", variant="primary", elem_id="compare", interactive=service.ready
        )
        page.stop = gr.Button("Stop", variant="stop", elem_id="stop")
        page.retry = gr.Button("Retry", elem_id="retry")
    page.answers = gr.HTML(elem_id="answers", js_on_load=_COPY)
    with gr.Row():
        page.to_json = gr.Button("Save as JSON", size="sm", elem_id="save-json")
        page.to_markdown = gr.Button("Save as Markdown", size="sm", elem_id="save-markdown")
    page.link = gr.Textbox(
        label="Link to this comparison", interactive=False, buttons=["copy"], elem_id="link"
    )
    page.query = gr.Textbox(visible="hidden")
    page.exports = [gr.Textbox(visible="hidden"), gr.Textbox(visible="hidden")]


def _compose(page: Page, service: Service) -> None:
    names = service.names([])
    with gr.Column(elem_classes="ri-controls"):
        for place in range(CONTROLS):
            name = names[place] if place < len(names) else None
            with gr.Row():
                shown = name is not None
                page.toggles.append(
                    gr.Checkbox(False, label=name or "", visible=shown, elem_id=f"toggle-{place}")
                )
                slider = gr.Slider(
                    -2,
                    2,
                    1,
                    step=0.05,
                    label=f"strength of {name}",
                    visible=shown,
                    elem_id=f"strength-{place}",
                    buttons=[],
                )
                page.sliders.append(slider)
    page.expression = gr.Textbox(
        "none",
        label="Expression",
        elem_id="expression",
        info="In step with the controls; can be written too: 0.5*german - english",
    )
    page.trouble = gr.HTML(elem_id="trouble")
    with gr.Row():
        page.answer = gr.Button(
            "Answer", variant="primary", elem_id="answer", interactive=service.ready
        )
        page.stop_answer = gr.Button("Stop", variant="stop", elem_id="stop-answer")
    page.composed = gr.HTML(elem_id="composed", js_on_load=_COPY)


def _look(page: Page, service: Service) -> None:
    gr.Markdown(
        "For the prompt above and the compositions of the first page: what is edited, and what that does."
    )
    page.look = gr.Button(
        "Look inside", variant="primary", elem_id="inside", interactive=service.ready
    )
    page.seen = [
        gr.HTML(elem_id="edited"),
        gr.HTML(elem_id="moved"),
        gr.HTML(elem_id="lens"),
        gr.HTML(elem_id="angles"),
    ]


def _checkpoints(page: Page, service: Service) -> None:
    first, folder = html.escape(Path(service.first).name), html.escape(service.folder.name)
    gr.HTML(
        f"<p>Beside <code>{first}</code>: one of <code>{folder}/</code>, or a hub id. "
        "Its subspaces are called <code>NAME@LABEL</code>.</p>"
    )
    page.source = gr.Dropdown(
        service.found(), label="Checkpoint", allow_custom_value=True, elem_id="source"
    )
    page.open = gr.Button("Open", variant="primary", elem_id="open", interactive=service.ready)
    page.opened = gr.HTML(views.notice("No further checkpoint is open."), elem_id="opened")
