"""vLLM's OpenAI server in a process of its own: started, waited for, ended.

Nothing here imports vLLM; the process is `roadint.engines.vllm.http.api_server`.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import IO, Any

import httpx

from roadint.engines.vllm.http.api_server import ANNOUNCEMENT
from roadint.engines.vllm.versions import TESTED
from roadint.errors import RoadError, first_line, listing

# All groups but the routes of servers, which act only where they are named.
_PLUGINS = ("general", "platform", "io_processor", "stat_logger")
_PREFIX = re.compile(
    r"^(\(\S+( pid=\d+)?\)\s*)*((INFO|WARNING|ERROR|DEBUG|CRITICAL)\S* [\d-]+ [\d:]+ \[[^]]*\]\s*)?"
)
_ERROR = re.compile(r"^(?:[\w.]*?)(?P<kind>\w*(?:Error|Exception|error)): (?P<said>.+)")
# What other processes say when the one that failed has said why.
_CONSEQUENCES = ("Engine core initialization failed", "See root cause", "See stack trace")
_KEPT = 5_000  # lines of its output
_PATIENCE = 20.0  # seconds in which the server may end by itself


@dataclass(frozen=True)
class ServerSettings:
    """What a server serves.

    Args:
        model: The base model, a folder or a hub id.
        roadint: roadint's part of the engine's configuration.
        defaults: Values of vLLM's arguments, by their names with "_", where `further` has none.
        further: vLLM's own arguments, as `vllm serve` takes them.
    """

    model: str
    roadint: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    further: Sequence[str] = ()


class Server:
    """A server that was started; as a context manager it ends with the context.

    Args:
        settings: What it serves.
        host: Where it listens.
        port: Its port.
        api_key: The token that clients have to send; None for that of VLLM_API_KEY, or none.

    Raises:
        RoadError: where vLLM is not installed, or its plugins can't be what they were without us.

    Attributes:
        url: Its address, without /v1, known when it is ready.
        model: The name of its model, known when it is ready.
        guarded: Whether it asks for a token, known when it is ready.
    """

    def __init__(
        self, settings: ServerSettings, host: str, port: int, api_key: str | None = None
    ) -> None:
        check_vllm()
        self.url, self.model, self.guarded = "", "", False
        defaults = {"host": host, "port": port, **settings.defaults}
        asked = {"roadint": settings.roadint, "defaults": defaults}
        module = "roadint.engines.vllm.http.api_server"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(asked), settings.model, *settings.further],
            stdin=subprocess.PIPE,  # its end tells the server that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(os.environ, api_key),
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for us: we end the server in order
        )
        self._lines: list[str] = []
        self._shown: IO[str] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """Wait until the server answers.

        Args:
            tell: Called with the server's last line, about twice a second.

        Raises:
            RoadError: where it ends before; the message has its last error.
        """
        while not self._answers():
            if self._process.poll() is not None:
                raise RoadError(f"the server ended before it was ready: {self._reason()}")
            tell(self.last_line)
            time.sleep(0.5)

    @property
    def last_line(self) -> str:
        """What the server said last, without time and place."""
        return next((said for line in self._lines[:-20:-1] if (said := _said(line))), "")

    def wait(self, shown: IO[str] | None = None) -> None:
        """Wait until the server ends.

        Args:
            shown: Where its output goes from now on.

        Raises:
            RoadError: when it ends; the message has its last error.
        """
        self._shown = shown
        self._process.wait()
        raise RoadError(f"the server ended: {self._reason()}")

    def stop(self) -> None:
        """End the server, its workers too."""
        self._shown = None
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if self._process.poll() is not None:
                    break
                self._process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_PATIENCE)
        finally:  # also at once, for those who are in a hurry
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANNOUNCEMENT):
                about = json.loads(line.removeprefix(ANNOUNCEMENT))
                self.model, self.guarded, self.url = about["model"], about["guarded"], about["url"]
                continue
            self._lines.append(line)
            if len(self._lines) > 2 * _KEPT:
                del self._lines[:-_KEPT]
            with suppress(OSError, ValueError):  # a full disk, a pipe that ended: we read on
                if self._shown is not None:
                    self._shown.write(line)

    def _answers(self) -> bool:
        if not self.url:
            return False
        try:  # at this machine's own address: no proxy, no certificate
            answer = httpx.get(f"{self.url}/health", timeout=5, trust_env=False, verify=False)
        except httpx.HTTPError:  # nobody listens yet
            return False
        return answer.status_code == 200

    def _reason(self) -> str:
        self._reader.join(5)
        with tempfile.NamedTemporaryFile(
            "w", prefix="roadint-serve-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.writelines(self._lines)
        return f"{last_error(self._lines)} (all that it said: {log.name})"


def check_vllm() -> None:
    """Check that vLLM can be started from this Python.

    Raises:
        RoadError: where it is not installed, or its server in Rust is chosen.
    """
    if importlib.util.find_spec("vllm") is None:
        raise RoadError(
            f"vLLM is not installed beside {sys.executable}: "
            f"pip install 'roadint[vllm]' 'vllm=={TESTED[-1]}.*'"
        )
    for group in ("vllm.general_plugins", "vllm.endpoint_plugins"):
        if "roadint" not in {entry.name for entry in entry_points(group=group)}:
            raise RoadError(
                f"vLLM would not find roadint, whose installation names no {group}: "
                "install roadint again"
            )
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise RoadError(
            "VLLM_USE_RUST_FRONTEND is set: that server knows no plugins, so no composition would "
            "act; expected it to be unset"
        )


def environment(of_caller: Mapping[str, str], api_key: str | None) -> dict[str, str]:
    """The environment of the server's process.

    vLLM loads a plugin that adds routes only where VLLM_PLUGINS names it, and then no other that it
    does not name: so all that would be loaded without it are named.

    Args:
        of_caller: The environment of this process.
        api_key: The token that clients have to send; it is on no command line.

    Raises:
        RoadError: where naming a plugin would also open routes that nobody asked for.
    """
    given = of_caller.get("VLLM_PLUGINS")
    names = installed_plugins() if given is None else [name for name in given.split(",") if name]
    plugins = ",".join(dict.fromkeys([*names, "roadint"]))
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    return {**of_caller, **key, "VLLM_PLUGINS": plugins}


def installed_plugins() -> list[str]:
    """The names of the plugins that vLLM loads where VLLM_PLUGINS is not set.

    Raises:
        RoadError: where one of them has routes too, which are not loaded then.
    """
    names: list[str] = []
    for group in _PLUGINS:
        names += [entry.name for entry in entry_points(group=f"vllm.{group}_plugins")]
    routes = {entry.name for entry in entry_points(group="vllm.endpoint_plugins")} - {"roadint"}
    if both := sorted(routes.intersection(names)):
        raise RoadError(
            f"vLLM's plugins {listing(both)} add routes to the server as soon as they are named: "
            "set VLLM_PLUGINS to those that it shall load"
        )
    return names


def last_error(lines: Sequence[str]) -> str:
    """The line that says why a server has ended.

    Args:
        lines: Its output.

    Returns:
        The last error that is no consequence of another one; or else the last line.

    Examples:
        >>> last_error(["ERROR 11-27 03:41:22 [core.py:9] ValueError: no room", "bye"])
        'no room'
    """
    said = [text for line in lines if (text := _said(line))]
    for index in range(len(said) - 1, -1, -1):
        match = _ERROR.match(said[index])
        if match and not any(text in said[index] for text in _CONSEQUENCES):
            details = said[index + 1 : index + 2] if "validation error" in said[index] else []
            return " ".join([match["said"], *details])
    return first_line(RuntimeError(said[-1])) if said else "it said nothing"


def _said(line: str) -> str:
    return _PREFIX.sub("", line.rstrip()).strip()
