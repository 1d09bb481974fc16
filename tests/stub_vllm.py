"""A package named vllm that starts in no time and answers /health: for tests of what starts vLLM.

Its `serve` says on stderr what the real one would get, starts a worker, and has arguments that make
it fail. It is written to a folder, which tests put on PYTHONPATH.
"""

import os
from pathlib import Path

import pytest

_SERVE = """
import http.server, json, os, signal, subprocess, sys, time

class ServeSubcommand:
    def subparser_init(self, subparsers):
        parser = subparsers.add_parser("serve")
        parser.add_argument("model")
        for name in ("host", "dtype", "chat-template", "uds", "ssl-keyfile", "ssl-certfile"):
            parser.add_argument(f"--{name}")
        parser.add_argument("--port", type=int)
        parser.add_argument("--served-model-name", nargs="+")
        parser.add_argument("--api-key", nargs="*")
        parser.add_argument("--additional-config", type=json.loads, default={})
        parser.add_argument("--fail", choices=("start", "later"))
        parser.add_argument("--told")
        return parser

    def validate(self, args):
        pass

    def cmd(self, args):
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        told = {**vars(args), "pid": os.getpid(), "worker": worker.pid, "cwd": os.getcwd()}
        told["env"] = {name: os.environ.get(name) for name in ("VLLM_PLUGINS", "VLLM_API_KEY")}
        if args.told:
            with open(args.told, "w") as file:
                json.dump(told, file)
        print("INFO 11-27 03:41:14 [loader.py:68] loading the model", flush=True)
        if args.fail == "start":
            print("(EngineCore pid=7) ERROR 11-27 03:41:14 [core.py:1] ValueError: no room", flush=True)
            raise RuntimeError("Engine core initialization failed. See root cause above.")

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/health" else 404)
                self.end_headers()
                if args.fail == "later" and self.path == "/health":
                    os._exit(3)

        def end(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, end)
        try:
            time.sleep(0.8)  # as long as nobody is there to answer
            http.server.HTTPServer((args.host, args.port), Handler).serve_forever()
        except KeyboardInterrupt:
            print("ended in order", flush=True)
"""
_FILES = {
    "vllm/__init__.py": "",
    "vllm/logger.py": "def configure_logging_from_args(args): pass\n",
    "vllm/entrypoints/cli/serve.py": _SERVE,
    "vllm/entrypoints/serve/utils/api_utils.py": "def cli_env_setup(): pass\n",
    "vllm/utils/argparse_utils.py": (
        "from argparse import ArgumentParser as FlexibleArgumentParser\n"
    ),
}


def distribution(folder: Path, name: str, **groups: list[str]) -> None:
    """Write the metadata of an installed distribution whose plugins of vLLM have these names."""
    metadata = folder / f"{name}-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    lines = []
    for group, names in groups.items():
        lines += [f"[vllm.{group}_plugins]", *(f"{plugin} = os:getcwd" for plugin in names)]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the package, and roadint's plugins, where this process and its children find them."""
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    distribution(folder, "roadint_plugins", general=["roadint"], endpoint=["roadint"])
    monkeypatch.syspath_prepend(str(folder))
    path = os.pathsep.join([str(folder), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    for name in ("VLLM_PLUGINS", "VLLM_API_KEY", "VLLM_USE_RUST_FRONTEND"):
        monkeypatch.delenv(name, raising=False)
    return folder
