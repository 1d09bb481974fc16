"""`roadint demo`: the app, in a browser."""

import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from roadint.cli.options import Base
from roadint.cli.output import print_line
from roadint.errors import RoadError, quoted

if TYPE_CHECKING:
    from roadint.demo.answering import Answering


def demo(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Folder or hub id; by default the small one that comes with it."),
    ] = None,
    further: Annotated[
        list[str] | None,
        typer.Argument(help="With --engine vllm, after --: arguments of `vllm serve`."),
    ] = None,
    model: Base = None,
    folder: Annotated[
        Path, typer.Option(help="Where further checkpoints may be opened from the page.")
    ] = Path("runs"),
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(help="What runs the model; vllm starts a server of its own."),
    ] = "transformers",
    server: Annotated[
        str | None,
        typer.Option(help="The address of a server that roadint serve started, to answer instead."),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="The token of that server.")] = None,
    host: Annotated[
        str, typer.Option(help="Where it listens; 0.0.0.0 for all of the network.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="7860, or the next free one, by default.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also under a public address of Gradio's.")
    ] = False,
    auth: Annotated[str | None, typer.Option(help="USER:PASSWORD that the page asks for.")] = None,
) -> None:
    """Open the app: compare compositions side by side, turn subspaces on and off, look inside."""
    try:
        from roadint.demo.app import launch
    except ImportError as error:
        raise RoadError(f"the app needs Gradio ({error}): pip install 'roadint[demo]'") from None
    from roadint.demo.service import SHIPPED, Service

    if checkpoint and checkpoint.startswith("-"):  # after --, and without a checkpoint before
        further = [checkpoint, *(further or ())]
        checkpoint = None
    if folder.exists() and not folder.is_dir():
        raise RoadError(f"--folder {folder} is a file: expected a folder of checkpoints")
    user, separator, password = (auth or "").partition(":")
    if auth and not (separator and user and password):
        raise RoadError("--auth: expected USER:PASSWORD")
    if server and (engine == "vllm" or model):
        raise RoadError(f"--server {server} has its engine and its model: leave out others")
    if further and engine != "vllm":
        raise RoadError(f"{quoted(further[0])} is for --engine vllm: leave it out")
    _check_address(host, port)
    first = checkpoint or str(SHIPPED)
    answering: Any = nullcontext(None)
    if server:
        answers = _answers_of(server, api_key, first)  # which fails before a page opens
        answering = nullcontext(lambda: answers)
    elif engine == "vllm":
        answering = _started(first, model, folder, further or ())
    with answering as connect:
        service = Service(first, folder=folder, model=model, connect=connect)
        settings: dict[str, Any] = {
            "server_name": host,
            "server_port": port,
            "share": share,
            "auth": (user, password) if auth else None,
            "inbrowser": sys.stdout.isatty() and host == "127.0.0.1",
            "quiet": True,
            "prevent_thread_lock": True,
        }
        _, address, public = launch(service, **settings)
        shown = f"{address} and {public}" if public else address
        print_line(f"roadint demo: {shown}; the model loads behind the page; Ctrl-C ends it")
        _wait()


def _wait() -> None:
    """Until Ctrl-C."""
    threading.Event().wait()


def _check_address(host: str, port: int | None) -> None:
    """Check that the page can listen there, before a model is loaded."""
    try:
        family = socket.getaddrinfo(host, port or 0)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port or 0))
    except OSError as error:
        where = f"--host {host}" + (f" --port {port}" if port else "")
        raise RoadError(
            f"{where}: the page can't listen there ({error.strerror or error}); expected an "
            "address of this machine (127.0.0.1, or 0.0.0.0 for all), and a port that is free"
        ) from None


def _answers_of(url: str, api_key: str | None, first: str) -> "Answering":
    from roadint.checkpoint.reading import folder_of, read
    from roadint.demo.server_answers import ServerAnswers
    from roadint.demo.server_client import ServerClient

    return ServerAnswers(ServerClient(url, api_key), read(folder_of(first)))


@contextmanager
def _started(
    first: str, model: str | None, folder: Path, further: Sequence[str]
) -> "Iterator[Callable[[], Answering]]":
    """A server of our own, for us alone."""
    from roadint.engines.vllm.http.server import Server, check_vllm
    from roadint.model.serving import needs_of, plan_server

    check_vllm()
    layers, adapters = needs_of(folder, first)
    plan = plan_server(
        first, None, model, folder=folder, layers=layers, adapters=adapters, further=further
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_urlsafe()
    with Server(plan.settings, "127.0.0.1", port, token) as server:

        def connect() -> "Answering":
            server.wait_until_ready()
            return _answers_of(server.url, token, first)

        yield connect
