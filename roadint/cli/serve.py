"""`roadint serve`: vLLM's OpenAI server, every request with a composition of its own."""

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roadint.cli.options import Added, Base, CheckpointName, Json, named_values
from roadint.cli.output import print_line
from roadint.progress import waiting

if TYPE_CHECKING:
    from roadint.engines.vllm.http.server import Server
    from roadint.model.serving import ServerPlan


def serve(
    checkpoint: CheckpointName,
    further: Annotated[
        list[str] | None, typer.Argument(help="After --: arguments of `vllm serve`.")
    ] = None,
    add: Added = None,
    model: Base = None,
    host: Annotated[
        str, typer.Option(help="Where it listens; 0.0.0.0 for all of the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="The token that clients have to send; by default none.")
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(
            help="Where clients may load further checkpoints from, beside the public hub."
        ),
    ] = Path("runs"),
    layer: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Repeatable: a layer that those may edit, too, from 0."),
    ] = None,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Those may have adapters of linear layers.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve a checkpoint with vLLM: an OpenAI server whose requests have their own compositions."""
    from roadint.engines.vllm.http.server import Server
    from roadint.model.serving import plan_server

    plan = plan_server(
        checkpoint,
        named_values(add, "--add"),
        model,
        folder=folder,
        layers=layer or (),
        adapters=adapters,
        further=further or (),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as Ctrl-C does
    try:
        with Server(plan.settings, host, port, api_key) as server:
            with waiting("the server starts", quiet=as_json) as tell:
                server.wait_until_ready(tell)
            _report(server, plan, as_json)
            server.wait(None if as_json else sys.stderr)
    except KeyboardInterrupt:
        pass


def _report(server: "Server", plan: "ServerPlan", as_json: bool) -> None:
    about = {"url": f"{server.url}/v1", "model": server.model, "names": list(plan.names)}
    if as_json:
        print(json.dumps(about, ensure_ascii=False), flush=True)
        return
    print_line(f"{server.model} at {about['url']}, through {', '.join(plan.names)}; Ctrl-C ends it")
    name = plan.names[0] if plan.names else "none"
    print_line("A composition is an argument of the request, or a part of the model's name:")
    asked = {"model": server.model, "vllm_xargs": {"roadint": name}}
    print(_example(server, plan, asked))
    print(_example(server, plan, {"model": f"{server.model}:{name}"}))


def _example(server: "Server", plan: "ServerPlan", asked: dict[str, Any]) -> str:
    """A command that sends a request, as people paste it."""
    question = "How can I learn English?"
    path = "completions"
    prompt: dict[str, Any] = {"prompt": question}
    if plan.chats:
        path, prompt = "chat/completions", {"messages": [{"role": "user", "content": question}]}
    body = shlex.quote(json.dumps({**asked, **prompt, "max_tokens": 64}, ensure_ascii=False))
    key = " -H 'Authorization: Bearer …'" if server.guarded else ""
    return f"  curl {server.url}/v1/{path}{key} -H 'Content-Type: application/json' -d {body}"
