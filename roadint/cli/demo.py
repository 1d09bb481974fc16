"""`roadint demo`: the app, in a browser."""

from pathlib import Path
from typing import Annotated, Any

import typer

from roadint.cli.options import Base
from roadint.cli.output import print_line
from roadint.errors import RoadError


def demo(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Folder or hub id; by default the small one that comes with it."),
    ] = None,
    model: Base = None,
    folder: Annotated[
        Path, typer.Option(help="Where further checkpoints may be opened from the page.")
    ] = Path("runs"),
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
    from roadint.demo.service import Service

    if folder.exists() and not folder.is_dir():
        raise RoadError(f"--folder {folder} is a file: expected a folder of checkpoints")
    user, separator, password = (auth or "").partition(":")
    if auth and not (separator and user and password):
        raise RoadError("--auth: expected USER:PASSWORD")
    service = Service(checkpoint, folder=folder, model=model)
    print_line("roadint demo: the page opens at once, the model loads behind it; Ctrl-C ends it")
    settings: dict[str, Any] = {
        "server_name": host,
        "server_port": port,
        "share": share,
        "auth": (user, password) if auth else None,
    }
    launch(service, **settings)
