"""The app: the page, wired to what it does. `build(service)` gives it, `launch(service)` serves it."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from roadint.demo.handlers import Handlers
from roadint.demo.page import layout
from roadint.demo.service import Service

_STYLE = Path(__file__).parent / "style.css"
_DOWNLOAD = """(text) => { const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: '%s'})); link.download = '%s'; link.click(); }"""
_LINK = """(query) => { if (!query) return '';
  const url = location.origin + location.pathname + query; history.replaceState(null, '', url); return url; }"""


def build(service: Service) -> gr.Blocks:
    """The app on a service, whose model may still be loading."""
    do = Handlers(service)
    private: dict[str, Any] = {"api_visibility": "private"}
    quiet: dict[str, Any] = {"show_progress": "hidden", **private}
    many: dict[str, Any] = {"concurrency_limit": 32, "concurrency_id": "answers", **quiet}
    with gr.Blocks(title="roadint", analytics_enabled=False, fill_width=True) as app:
        page = layout(service)
        timer = gr.Timer(1, active=not service.ready)
        polled = [page.status, timer, *page.actions]
        first = [page.prompt, page.chosen, page.further, *page.settings, page.labels, *page.controls, page.opened]
        app.load(do.arrive, None, [*first, *polled], **quiet)
        timer.tick(do.poll, None, polled, **quiet)

        asked = [page.prompt, page.chosen, page.further, *page.settings, page.highlight, page.labels]
        shown = [page.answers, page.last, page.query, *page.exports]
        starts = (page.compare.click, page.retry.click, page.prompt.submit)
        running = [start(do.compare, asked, shown, **many) for start in starts]
        for each in running:
            each.then(None, [page.query], [page.link], js=_LINK, **private)
        stopping = page.stop.click(lambda: None, None, None, cancels=running, **quiet)
        stopping.then(do.halt, [page.last, page.highlight], [page.answers], **quiet)  # after the last update
        page.to_json.click(None, [page.exports[0]], None, js=_DOWNLOAD % ("application/json", "comparison.json"), **private)
        page.to_markdown.click(None, [page.exports[1]], None, js=_DOWNLOAD % ("text/markdown", "comparison.md"), **private)

        by_controls: dict[str, Any] = {
            "fn": do.by_controls,
            "inputs": [page.labels, *page.controls],
            "outputs": [page.expression, page.trouble],
            **quiet,
        }
        for toggle, slider in zip(page.toggles, page.sliders, strict=True):
            toggle.input(**by_controls)
            slider.input(bool, slider, toggle, **quiet).then(**by_controls)
        for change in (page.expression.submit, page.expression.blur):
            change(do.by_text, [page.expression, page.labels], [page.trouble, *page.controls], **quiet)
        answering = page.answer.click(
            do.compose, [page.prompt, page.expression, *page.settings, page.labels], [page.composed], **many
        )
        page.stop_answer.click(None, None, None, cancels=[answering], **private)

        page.look.click(do.look, [page.prompt, page.chosen, page.further, page.labels], page.seen, concurrency_limit=2, **private)
        opening = [page.opened, page.labels, page.chosen, *page.controls]
        page.open.click(do.open, [page.source, page.labels, page.chosen], opening, **private)
        api(do.answers, api_name="answers", concurrency_limit=32)
    return app  # type: ignore[no-any-return]


def launch(service: Service, **arguments: Any) -> Any:
    """Serve the app; arguments: of Gradio's launch. Binds to loopback unless told otherwise."""
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched
    settings: dict[str, Any] = {
        "server_name": "127.0.0.1",
        "css": _STYLE.read_text(encoding="utf-8"),
        "theme": gr.themes.Default(**fonts),
        "footer_links": ["api"],
        "ssr_mode": False,
    }
    return build(service).queue(default_concurrency_limit=16, max_size=64).launch(**{**settings, **arguments})
