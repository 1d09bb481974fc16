"""vLLM's own OpenAI server, in this process, with roadint's part in its configuration (needs vLLM).

`python -m roadint.engines.vllm.http.api_server SETTINGS MODEL [ARGUMENT …]`; SETTINGS is JSON:
"roadint" goes into the engine's additional_config, "defaults" are values of arguments that neither
the command line nor a file of --config says. The rest is as `vllm serve` takes it.

It is started through vLLM's classes, since the `vllm` command wants a package of that very name,
which vLLM's build for CPUs has not.
"""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

# What starts a line of output that is for the process which started this one.
ANNOUNCEMENT = "roadint serves: "
# The API that roadint adds to is Python's, and has to be in this process, at an address.
_UNSERVED = ("grpc", "headless", "uds", "data_parallel_multi_port_external_lb")


def main(arguments: Sequence[str]) -> None:
    """Serve, until a signal comes or the process that started this one is gone.

    Args:
        arguments: The settings, the model and vLLM's arguments.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    settings = json.loads(arguments[0])
    cli_env_setup()
    parser, command = FlexibleArgumentParser(prog="roadint"), ServeSubcommand()
    serve_parser = command.subparser_init(parser.add_subparsers(dest="subparser"))
    serve_parser.set_defaults(**settings["defaults"])
    args = parser.parse_args(["serve", *arguments[1:]])
    configure_logging_from_args(args)
    command.validate(args)
    args.additional_config = with_roadint(args.additional_config, settings["roadint"])
    _check(args)
    print(ANNOUNCEMENT + json.dumps(_address(args)), flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    command.cmd(args)


def with_roadint(additional: dict[str, Any] | None, roadint: dict[str, Any]) -> dict[str, Any]:
    """The engine's additional configuration, with roadint's part.

    Args:
        additional: What the arguments say of it.
        roadint: roadint's part.

    Raises:
        SystemExit: where the arguments have such a part themselves.
    """
    additional = dict(additional or {})
    if "roadint" in additional:
        raise SystemExit("error: --additional-config has a part 'roadint': use roadint's options")
    return {**additional, "roadint": roadint}


def _check(args: Any) -> None:
    for name in _UNSERVED:
        if getattr(args, name, None):
            option = f"--{name.replace('_', '-')}"
            raise SystemExit(f"error: {option} is not for roadint: expected --host and --port")
    host = args.host or ""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, args.port))
        except OSError as error:
            raise SystemExit(
                f"error: port {args.port} of {host or 'this machine'} can't be had "
                f"({error.strerror}): choose another with --port"
            ) from None


def _address(args: Any) -> dict[str, Any]:
    """Where the server will be, and what it needs."""
    host = args.host if args.host not in (None, "0.0.0.0", "::") else "127.0.0.1"
    scheme = "https" if args.ssl_keyfile and args.ssl_certfile else "http"
    names = args.served_model_name
    return {
        "url": f"{scheme}://{f'[{host}]' if ':' in host else host}:{args.port}",
        "model": names[0] if isinstance(names, list) else names or args.model,
        "guarded": bool(args.api_key or os.environ.get("VLLM_API_KEY")),
    }


def _end_with_parent() -> None:
    """Wait until the other end of stdin is closed, then end as from outside."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
