"""The app: the page, wired to its handlers; `build` makes it, `launch` serves it."""

from collections.abc import Callable
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

# Values come as they were sent: the handlers check them and say what is wrong, Gradio does not.
_PRIVATE: dict[str, Any] = {
    "api_visibility": "private",
    "preprocess": False,
    "show_progress": "hidden",
}
# The queue counts the requests of every visitor, and of all, and refuses with a reason.
_MANY: dict[str, Any] = {"concurrency_limit": _ANSWERS, "concurrency_id": "answers"}
_RECEIVE = "(text) => { window.roadint.receive(text); }"


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
        page = lay_out(loading=not (service.ready or service.failed))
        _wire(app, page, handlers)
        api(handlers.answers, api_name="answers", **_MANY)
    return app


def _wire(app: gr.Blocks, page: Page, handlers: Handlers) -> None:
    for heard in (page.status, page.answers, page.told):
        heard.change(None, [heard], None, js=_RECEIVE, **_PRIVATE)
    polled = [page.status, page.timer]
    app.load(
        handlers.arrive, [page.values[0]], [page.told, page.labels, *polled],
        js="() => window.roadint.query()", **_PRIVATE,
    )  # fmt: skip
    page.timer.tick(handlers.poll, None, polled, **_PRIVATE)
    both = [page.told, page.labels]
    _ask(page, "arrive", handlers.arrive, 1, [*both, *polled])
    _ask(page, "compare", handlers.compare, 6, [page.answers], **_MANY)
    # Gradio's own `cancels` may end the next question in place of the one that runs.
    _ask(page, "stop", handlers.stop, 1, [], concurrency_limit=None)
    _ask(page, "parse", handlers.parse, 2, [page.told])
    _ask(page, "look", handlers.look, 3, [page.told], concurrency_limit=2)
    _ask(page, "open", handlers.open, 1, both, concurrency_limit=4)
    _ask(page, "close", handlers.close, 1, both)


def _ask(
    page: Page, name: str, handler: Callable[..., Any], count: int, heard: Any, **limits: Any
) -> None:
    """Wire a question with so many values; its handler is told the page's checkpoints too."""
    takes_labels = name != "arrive"
    inputs = [*page.values[:count], *([page.labels] if takes_labels else [])]
    values = f"...window.roadint.values('{name}')"
    page.buttons[name].click(
        handler,
        inputs,
        heard,
        js=f"() => [{values}{', null' if takes_labels else ''}]",
        trigger_mode="multiple",
        **limits,
        **_PRIVATE,
    )


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
        "theme": gr.themes.Base(**fonts),
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
