"""The app: the page, wired to its handlers; `build` makes it, `launch` serves it."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api
from starlette.middleware import Middleware

from roadint.demo.guard import Guard
from roadint.demo.handlers import Handlers
from roadint.demo.page import Page, lay_out
from roadint.demo.service import Service
from roadint.demo.streams import OpenStreams

# A few more than may wait, so that those over the limit hear of it at once.
_ANSWERS = 80
_THREADS = 128
_QUEUE = 128  # requests that Gradio keeps before they run
_STYLE = Path(__file__).parent / "style.css"
_DOWNLOAD = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: '%s'}));
  link.download = '%s';
  link.click();
}"""
_LINK = """(query) => {
  if (!query) return '';
  const url = location.origin + location.pathname + query;
  history.replaceState(null, '', url);
  return url;
}"""

# Values come as they were sent: the handlers check them and say what is wrong, Gradio does not.
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
_QUIET: dict[str, Any] = {"show_progress": "hidden", **_PRIVATE}
# The queue counts the requests of every visitor, and of all, and refuses with a reason.
_MANY: dict[str, Any] = {"concurrency_limit": _ANSWERS, "concurrency_id": "answers"}


def build(service: Service, streams: OpenStreams | None = None) -> gr.Blocks:
    """Make the app.

    Args:
        service: The model, which may still be loading, and its checkpoints.
        streams: Who reads answers; see roadint.demo.guard.

    Returns:
        The app, not yet served.
    """
    handlers = Handlers(service, streams)
    app: gr.Blocks
    with gr.Blocks(title="roadint", analytics_enabled=False, fill_width=True) as app:
        page = lay_out(service)
        _wire_arrival(app, page, handlers, active=not service.ready)
        _wire_compare(page, handlers)
        _wire_compose(page, handlers)
        _wire_look_and_open(page, handlers)
        api(handlers.answers, api_name="answers", **_MANY)
    return app


def launch(service: Service, **arguments: Any) -> Any:
    """Serve the app, for this machine alone unless the arguments say otherwise.

    Args:
        service: The model and its checkpoints.
        **arguments: The arguments of Gradio's launch.

    Returns:
        What Gradio's launch returns: the server, its local address and the shared one.
    """
    fonts: dict[str, Any] = {  # none is fetched
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }
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
        **arguments,
    }
    streams = OpenStreams()
    of_caller = settings["app_kwargs"]
    middleware = [Middleware(Guard, streams=streams), *of_caller.get("middleware", ())]
    settings["app_kwargs"] = {**of_caller, "middleware": middleware}
    app = build(service, streams).queue(default_concurrency_limit=16, max_size=_QUEUE)
    return app.launch(**settings)


def _wire_arrival(app: gr.Blocks, page: Page, handlers: Handlers, *, active: bool) -> None:
    timer = gr.Timer(1, active=active)
    polled = [page.status, timer, *page.buttons]
    filled = [
        page.prompt,
        page.comparing.ticked,
        page.comparing.further,
        *page.settings,
        page.labels,
        *page.composing.controls,
        page.opening.opened,
    ]
    app.load(handlers.arrive, None, [*filled, *polled], **_QUIET)
    timer.tick(handlers.poll, None, polled, **_QUIET)


def _wire_compare(page: Page, handlers: Handlers) -> None:
    tab = page.comparing
    asked = [page.prompt, tab.ticked, tab.further, *page.settings, page.highlight, page.labels]
    shown = [tab.answers, page.last, tab.query, tab.json, tab.markdown]
    starts = (tab.compare.click, tab.retry.click, page.prompt.submit)
    running = [start(handlers.compare, asked, shown, **_MANY, **_QUIET) for start in starts]
    for comparison in running:
        comparison.then(None, [tab.query], [tab.link], js=_LINK, **_PRIVATE)
    stopping = tab.stop.click(lambda: None, None, None, cancels=[*running], **_QUIET)
    # After the last update.
    stopping.then(handlers.halt, [page.last, page.highlight], [tab.answers], **_QUIET)
    for button, text, kind, name in (
        (tab.save_json, tab.json, "application/json", "comparison.json"),
        (tab.save_markdown, tab.markdown, "text/markdown", "comparison.md"),
    ):
        button.click(None, [text], None, js=_DOWNLOAD % (kind, name), **_PRIVATE)


def _wire_compose(page: Page, handlers: Handlers) -> None:
    tab = page.composing
    by_controls: dict[str, Any] = {
        "fn": handlers.by_controls,
        "inputs": [page.labels, *tab.controls],
        "outputs": [tab.expression, tab.trouble],
        **_QUIET,
    }
    for toggle, slider in zip(tab.toggles, tab.sliders, strict=True):
        toggle.input(**by_controls)
        slider.input(bool, slider, toggle, **_QUIET).then(**by_controls)
    for change in (tab.expression.submit, tab.expression.blur):
        inputs = [tab.expression, page.labels]
        change(handlers.by_text, inputs, [tab.trouble, *tab.controls], **_QUIET)
    asked = [page.prompt, tab.expression, *page.settings, page.labels]
    answering = tab.answer.click(handlers.compose, asked, [tab.composed], **_MANY, **_QUIET)
    tab.stop.click(None, None, None, cancels=[answering], **_PRIVATE)


def _wire_look_and_open(page: Page, handlers: Handlers) -> None:
    ticked, further = page.comparing.ticked, page.comparing.further
    looking = [page.prompt, ticked, further, page.labels]
    page.looking.look.click(
        handlers.look, looking, page.looking.shown, concurrency_limit=2, **_PRIVATE
    )
    tab = page.opening
    changed = [tab.opened, page.labels, ticked, *page.composing.controls]
    tab.open.click(
        handlers.open, [tab.source, page.labels, ticked], changed, concurrency_limit=4, **_PRIVATE
    )
