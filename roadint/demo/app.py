"""The app: the page, wired to what it does. `build(service)` gives it, `launch(service)` serves it."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api
from starlette.middleware import Middleware

from roadint.demo.guard import Guard, Listening
from roadint.demo.handlers import Handlers
from roadint.demo.page import layout
from roadint.demo.service import Service

_ANSWERS = 80  # a few more than the engine lets wait, so that those over the limit are told at once
_THREADS = 128
_QUEUE = 128  # requests that Gradio keeps before they run
_STYLE = Path(__file__).parent / "style.css"
_DOWNLOAD = """(text) => { const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: '%s'})); link.download = '%s'; link.click(); }"""
_LINK = """(query) => { if (!query) return '';
  const url = location.origin + location.pathname + query; history.replaceState(null, '', url); return url; }"""


def build(service: Service, listening: Listening | None = None) -> gr.Blocks:
    """The app on a service, whose model may still be loading. listening: who reads the answers; see roadint.demo.guard."""
    do = Handlers(service, listening)
    # Values come as they were sent: the handlers check them and say what is wrong, Gradio's components do not.
    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
    quiet: dict[str, Any] = {"show_progress": "hidden", **private}
    # The engine counts the requests of each visitor, and of all, and refuses with a reason.
    many: dict[str, Any] = {"concurrency_limit": _ANSWERS, "concurrency_id": "answers", **quiet}
    with gr.Blocks(title="roadint", analytics_enabled=False, fill_width=True) as app:
        page = layout(service)
        timer = gr.Timer(1, active=not service.ready)
        polled = [page.status, timer, *page.actions]
        first = [
            page.prompt,
            page.chosen,
            page.further,
            *page.settings,
            page.labels,
            *page.controls,
            page.opened,
        ]
        app.load(do.arrive, None, [*first, *polled], **quiet)
        timer.tick(do.poll, None, polled, **quiet)

        asked = [
            page.prompt,
            page.chosen,
            page.further,
            *page.settings,
            page.highlight,
            page.labels,
        ]
        shown = [page.answers, page.last, page.query, *page.exports]
        starts = (page.compare.click, page.retry.click, page.prompt.submit)
        running = [start(do.compare, asked, shown, **many) for start in starts]
        for each in running:
            each.then(None, [page.query], [page.link], js=_LINK, **private)
        stopping = page.stop.click(lambda: None, None, None, cancels=running, **quiet)
        stopping.then(
            do.halt, [page.last, page.highlight], [page.answers], **quiet
        )  # after the last update
        page.to_json.click(
            None,
            [page.exports[0]],
            None,
            js=_DOWNLOAD % ("application/json", "comparison.json"),
            **private,
        )
        page.to_markdown.click(
            None,
            [page.exports[1]],
            None,
            js=_DOWNLOAD % ("text/markdown", "comparison.md"),
            **private,
        )

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
            change(
                do.by_text, [page.expression, page.labels], [page.trouble, *page.controls], **quiet
            )
        answering = page.answer.click(
            do.compose,
            [page.prompt, page.expression, *page.settings, page.labels],
            [page.composed],
            **many,
        )
        page.stop_answer.click(None, None, None, cancels=[answering], **private)

        page.look.click(
            do.look,
            [page.prompt, page.chosen, page.further, page.labels],
            page.seen,
            concurrency_limit=2,
            **private,
        )
        opening = [page.opened, page.labels, page.chosen, *page.controls]
        page.open.click(
            do.open,
            [page.source, page.labels, page.chosen],
            opening,
            concurrency_limit=4,
            **private,
        )
        api(do.answers, api_name="answers", concurrency_limit=_ANSWERS, concurrency_id="answers")
    return app  # type: ignore[no-any-return]


def launch(service: Service, **arguments: Any) -> Any:
    """Serve the app; arguments: of Gradio's launch. Binds to loopback unless told otherwise."""
    fonts: dict[str, Any] = {
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }  # nothing is fetched
    listening = Listening()
    settings: dict[str, Any] = {
        "server_name": "127.0.0.1",
        "css": _STYLE.read_text(encoding="utf-8"),
        "theme": gr.themes.Default(**fonts),
        "footer_links": ["api"],
        "ssr_mode": False,
        "max_threads": _THREADS,
        "max_file_size": "1kb",  # the guard lets no file come so far
        "enable_monitoring": False,
        "state_session_capacity": 1000,
        "app_kwargs": {},
    }
    settings |= arguments
    guard = Middleware(Guard, listening=listening)
    settings["app_kwargs"] = {
        **settings["app_kwargs"],
        "middleware": [guard, *settings["app_kwargs"].get("middleware", ())],
    }
    return (
        build(service, listening)
        .queue(default_concurrency_limit=16, max_size=_QUEUE)
        .launch(**settings)
    )
