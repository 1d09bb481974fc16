"""The page: a surface of our own, and what it hears and says through Gradio's queue.

The surface is `static/surface.html`, with `static/*.js` in the order of their names. A question
goes out by a click on a hidden button, whose event takes its values from `roadint.values(NAME)`; a
message comes back in a hidden text, whose change calls `roadint.receive`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

_STATIC = Path(__file__).parent / "static"
QUESTIONS = ("arrive", "compare", "stop", "parse", "look", "open", "close")


@dataclass(frozen=True)
class Page:
    """The components of the page.

    Attributes:
        labels: The state with the checkpoints that the page has opened.
        status: Messages about the model.
        answers: Messages with answers.
        told: All other messages.
        values: What a question says; as many as the longest has.
        buttons: By question.
        timer: While the model loads.
    """

    labels: gr.State
    status: gr.Textbox
    answers: gr.Textbox
    told: gr.Textbox
    values: list[gr.Textbox]
    buttons: dict[str, gr.Button]
    timer: gr.Timer


def lay_out(*, loading: bool) -> Page:
    """Lay out the page, inside the current gr.Blocks.

    Args:
        loading: Whether the model still loads.
    """
    scripts = [path.read_text(encoding="utf-8") for path in sorted(_STATIC.glob("*.js"))]
    style = (_STATIC / "style.css").read_text(encoding="utf-8")
    surface = (_STATIC / "surface.html").read_text(encoding="utf-8")
    gr.HTML(
        # Gradio's own `css` takes selectors apart at every comma, those in :is(…) too.
        html_template=f"<style>{style}</style>{surface}",
        js_on_load="\n".join(scripts),
        apply_default_css=False,
        elem_id="ri-surface",
    )
    hidden: dict[str, Any] = {"visible": "hidden", "show_label": False}
    return Page(
        labels=gr.State([]),
        status=gr.Textbox(**hidden),
        answers=gr.Textbox(**hidden),
        told=gr.Textbox(**hidden),
        values=[gr.Textbox(**hidden) for _ in range(6)],
        buttons={
            name: gr.Button(name, visible="hidden", elem_id=f"ri-do-{name}") for name in QUESTIONS
        },
        timer=gr.Timer(1, active=loading),
    )
