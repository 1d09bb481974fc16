"""The components of the page, in order; roadint.demo.app connects them with handlers."""

import html
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from roadint.data.sources import load_prompts
from roadint.demo import views
from roadint.demo.controls import CONTROLS, MAX_STRENGTH, offered
from roadint.demo.service import Service

_COPY = """element.addEventListener('click', event => {
  const button = event.target.closest('.ri-copy');
  if (!button) return;
  const text = button.closest('article').querySelector('.ri-text').innerText;
  navigator.clipboard.writeText(text).then(
    () => {
      button.textContent = 'Copied';
      setTimeout(() => { button.textContent = 'Copy'; }, 1500);
    },
    () => { button.textContent = 'Copying is not allowed here'; });
});"""
_EXAMPLES = [
    "Write two sentences about the moon.",
    "What is the difference between a cat and a dog?",
    "How do I make tea?",
    "Give three tips for a good night's sleep.",
]


@dataclass(frozen=True)
class CompareTab:
    """Answers side by side; query, json and markdown are hidden, for the link and for files."""

    ticked: gr.CheckboxGroup
    further: gr.Textbox
    compare: gr.Button
    stop: gr.Button
    retry: gr.Button
    answers: gr.HTML
    save_json: gr.Button
    save_markdown: gr.Button
    link: gr.Textbox
    query: gr.Textbox
    json: gr.Textbox
    markdown: gr.Textbox


@dataclass(frozen=True)
class ComposeTab:
    """One expression, by toggles and sliders or as text."""

    toggles: list[gr.Checkbox]
    sliders: list[gr.Slider]
    expression: gr.Textbox
    trouble: gr.HTML
    answer: gr.Button
    stop: gr.Button
    composed: gr.HTML

    @property
    def controls(self) -> list[gr.Checkbox | gr.Slider]:
        """Toggles, then sliders."""
        return [*self.toggles, *self.sliders]


@dataclass(frozen=True)
class LookTab:
    """What is edited, and what that does; `shown` are tokens, next tokens, lens and blocks."""

    look: gr.Button
    shown: list[gr.HTML]


@dataclass(frozen=True)
class CheckpointsTab:
    """Further checkpoints."""

    source: gr.Dropdown
    open: gr.Button
    opened: gr.HTML


@dataclass(frozen=True)
class Page:
    """The components of the page.

    Attributes:
        labels: The state with the checkpoints that the page has opened.
        last: The state with the comparison that is shown.
        settings: New tokens, temperature and seed.
    """

    labels: gr.State
    last: gr.State
    status: gr.HTML
    prompt: gr.Textbox
    settings: list[gr.Slider | gr.Number]
    highlight: gr.Checkbox
    comparing: CompareTab
    composing: ComposeTab
    looking: LookTab
    opening: CheckpointsTab

    @property
    def buttons(self) -> list[gr.Button]:
        """The buttons that wait for the model."""
        return [self.comparing.compare, self.composing.answer, self.looking.look, self.opening.open]


def lay_out(service: Service) -> Page:
    """Lay out the page.

    Args:
        service: The model and its checkpoints.

    Returns:
        The components, inside the current gr.Blocks.
    """
    labels, last = gr.State([]), gr.State(None)
    gr.HTML(
        "<h1 class='ri-title'>roadint "
        "<small>subspaces of a language model, turned on and off</small></h1>"
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
    examples = [[text] for text in [*load_prompts("bundled:prompts_paper"), *_EXAMPLES]]
    label = "The paper's nine prompts, and some of ours"
    gr.Examples(examples, [prompt], label=label, examples_per_page=6)
    with gr.Accordion("Generation settings", open=False):
        with gr.Row():
            settings: list[gr.Slider | gr.Number] = [
                gr.Slider(4, 256, 48, step=4, label="New tokens", elem_id="length"),
                gr.Slider(
                    0, 1.5, 0, step=0.1, label="Temperature (0: greedy)", elem_id="temperature"
                ),
                gr.Number(0, precision=0, label="Seed of sampling", elem_id="seed"),
            ]
        highlight = gr.Checkbox(
            True, label="Mark what differs from the untouched answer", elem_id="highlight"
        )
    with gr.Tabs():
        with gr.Tab("Compare", id="compare"):
            comparing = _compare_tab(service)
        with gr.Tab("Compose", id="compose"):
            composing = _compose_tab(service)
        with gr.Tab("Look inside", id="inside"):
            looking = _look_tab(service)
        with gr.Tab("Checkpoints", id="checkpoints"):
            opening = _checkpoints_tab(service)
    shared = (labels, last, status, prompt, settings, highlight)
    return Page(*shared, comparing, composing, looking, opening)


def _action(text: str, elem_id: str, service: Service) -> gr.Button:
    """A button that waits for the model."""
    return gr.Button(text, variant="primary", elem_id=elem_id, interactive=service.ready)


def _compare_tab(service: Service) -> CompareTab:
    choices = offered(service.names([]))
    ticked = gr.CheckboxGroup(choices, value=choices, label="Compositions", elem_id="chosen")
    further = gr.Textbox(
        label="Further expressions, separated by commas",
        placeholder="0.5*german + english, english - german",
        elem_id="further",
    )
    with gr.Row():
        compare = _action("Compare", "compare", service)
        stop = gr.Button("Stop", variant="stop", elem_id="stop")
        retry = gr.Button("Retry", elem_id="retry")
    answers = gr.HTML(elem_id="answers", js_on_load=_COPY)
    with gr.Row():
        save_json = gr.Button("Save as JSON", size="sm", elem_id="save-json")
        save_markdown = gr.Button("Save as Markdown", size="sm", elem_id="save-markdown")
    link = gr.Textbox(
        label="Link to this comparison", interactive=False, buttons=["copy"], elem_id="link"
    )
    query, json, markdown = (gr.Textbox(visible="hidden") for _ in range(3))
    choosing = (ticked, further, compare, stop, retry, answers)
    return CompareTab(*choosing, save_json, save_markdown, link, query, json, markdown)


def _compose_tab(service: Service) -> ComposeTab:
    names = service.names([])
    toggles, sliders = [], []
    with gr.Column(elem_classes="ri-controls"):
        for index in range(CONTROLS):
            shown = index < len(names)
            name = names[index] if shown else None
            with gr.Row():
                toggle = gr.Checkbox(
                    False, label=name or "", visible=shown, elem_id=f"toggle-{index}"
                )
                slider = gr.Slider(
                    -MAX_STRENGTH,
                    MAX_STRENGTH,
                    1,
                    step=0.05,
                    label=f"strength of {name}",
                    visible=shown,
                    elem_id=f"strength-{index}",
                    buttons=[],
                )
            toggles.append(toggle)
            sliders.append(slider)
    expression = gr.Textbox(
        "none",
        label="Expression",
        elem_id="expression",
        info="In step with the controls; can be written too: 0.5*german - english",
    )
    trouble = gr.HTML(elem_id="trouble")
    with gr.Row():
        answer = _action("Answer", "answer", service)
        stop = gr.Button("Stop", variant="stop", elem_id="stop-answer")
    composed = gr.HTML(elem_id="composed", js_on_load=_COPY)
    return ComposeTab(toggles, sliders, expression, trouble, answer, stop, composed)


def _look_tab(service: Service) -> LookTab:
    gr.Markdown(
        "For the prompt above and the compositions of the first page: "
        "what is edited, and what that does."
    )
    look = _action("Look inside", "inside", service)
    return LookTab(look, [gr.HTML(elem_id=name) for name in ("edited", "moved", "lens", "angles")])


def _checkpoints_tab(service: Service) -> CheckpointsTab:
    first, folder = html.escape(Path(service.first).name), html.escape(service.folder.name)
    gr.HTML(
        f"<p>Beside <code>{first}</code>: one of <code>{folder}/</code>, or a hub id. "
        "Its subspaces are called <code>NAME@LABEL</code>.</p>"
    )
    source = gr.Dropdown(
        service.checkpoints(), label="Checkpoint", allow_custom_value=True, elem_id="source"
    )
    open_button = _action("Open", "open", service)
    opened = gr.HTML(views.notice("No further checkpoint is open."), elem_id="opened")
    return CheckpointsTab(source, open_button, opened)
