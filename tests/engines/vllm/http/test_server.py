"""vLLM's server as a process: started, waited for, ended, and what it says when it fails.

On a package of that name that starts in no time.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from roadint import RoadError
from roadint.engines.vllm.http.api_server import with_roadint
from roadint.engines.vllm.http.server import (
    Server,
    ServerSettings,
    check_vllm,
    environment,
    installed_plugins,
    last_error,
)
from tests import stub_vllm

ROADINT = {"checkpoints": {"": "runs/first"}}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return stub_vllm.install(tmp_path / "site", monkeypatch)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(*further: str, **defaults: Any) -> ServerSettings:
    return ServerSettings("tiny", ROADINT, defaults, further)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        return not (state.exists() and ") Z" in state.read_text())  # nobody has asked for its code
    except OSError:
        return False


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_is_told_everything_and_ends_with_its_workers(stub: Path, tmp_path: Path) -> None:
    told, port = tmp_path / "told", free_port()
    said: list[str] = []
    asked = settings(
        "--told", str(told), "--additional-config", '{"own": 1}', "--dtype", "float32",
        dtype="bfloat16", served_model_name=["name"],
    )  # fmt: skip
    with Server(asked, "127.0.0.1", port, "secret") as server:
        server.wait_until_ready(said.append)
        assert server.url == f"http://127.0.0.1:{port}"
        assert (server.model, server.guarded) == ("name", True)
        assert httpx.get(f"{server.url}/health").status_code == 200
        args = json.loads(told.read_text())
        assert args["additional_config"] == {"own": 1, "roadint": ROADINT}
        assert args["dtype"] == "float32"  # what was said comes before what is usual
        assert args["env"]["VLLM_API_KEY"] == "secret"
        assert "roadint" in args["env"]["VLLM_PLUGINS"].split(",")
        assert is_there(args["worker"])
    assert "loading the model" in said
    assert not is_there(args["pid"])
    wait_until(lambda: not is_there(args["worker"]))


def test_a_server_that_fails_says_why_in_a_line(stub: Path) -> None:
    with (
        Server(settings("--fail", "start"), "127.0.0.1", free_port()) as server,
        pytest.raises(RoadError, match=r"ended before it was ready: no room \(all that it said: "),
    ):
        server.wait_until_ready()
    with (
        Server(settings("--fooled"), "127.0.0.1", free_port()) as server,
        pytest.raises(RoadError, match=r"error: unrecognized arguments: --fooled"),
    ):
        server.wait_until_ready()


def test_a_server_that_dies_later_ends_the_wait(stub: Path) -> None:
    with Server(settings("--fail", "later"), "127.0.0.1", free_port()) as server:
        server.wait_until_ready()
        with pytest.raises(RoadError, match="the server ended: "):
            server.wait()


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (["--uds", "socket"], "--uds is not for roadint"),
        (["--additional-config", '{"roadint": {}}'], "has a part 'roadint'"),
    ],
)
def test_arguments_that_roadint_can_t_go_with_are_refused(
    stub: Path, further: list[str], said: str
) -> None:
    with (
        Server(settings(*further), "127.0.0.1", free_port()) as server,
        pytest.raises(RoadError, match=said),
    ):
        server.wait_until_ready()


def test_a_port_that_is_taken_is_told_before_the_model_loads(stub: Path, tmp_path: Path) -> None:
    """Whoever has it may answer /health, as another server would."""
    told = tmp_path / "told"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            Server(settings("--told", str(told)), "127.0.0.1", port) as server,
            pytest.raises(RoadError, match=f"port {port} of 127.0.0.1 can't be had"),
        ):
            server.wait_until_ready()
    assert not told.exists()


def test_a_server_ends_when_whoever_started_it_is_killed(stub: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"""
import time
from roadint.engines.vllm.http.server import Server, ServerSettings
server = Server(ServerSettings("tiny", {{}}, {{}}, ["--told", {str(told)!r}]), "127.0.0.1", {free_port()})
server.wait_until_ready()
print("ready", flush=True)
time.sleep(600)
"""
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert starter.stdout.readline() == "ready\n"
    args = json.loads(told.read_text())
    starter.kill()
    starter.wait()
    wait_until(lambda: not is_there(args["pid"]))
    os.kill(args["worker"], signal.SIGKILL)  # vLLM ends its own


def test_without_vllm_one_line(monkeypatch: pytest.MonkeyPatch, stub: Path) -> None:
    check_vllm()
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(RoadError, match="knows no plugins, so no composition would act"):
        check_vllm()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RoadError, match=r"not installed .*: pip install 'roadint\[vllm\]'"):
        check_vllm()


def test_an_installation_without_the_entry_points_is_refused(
    monkeypatch: pytest.MonkeyPatch, stub: Path
) -> None:
    """vLLM would start, and answer without any edit."""
    monkeypatch.setattr("roadint.engines.vllm.http.server.entry_points", lambda group: [])
    with pytest.raises(RoadError, match=r"names no vllm\.general_plugins: install roadint again"):
        check_vllm()


def test_no_plugin_is_lost_by_naming_roadint(stub: Path) -> None:
    """All that vLLM loads by itself are named; of those that were chosen, no more."""
    before = installed_plugins()
    stub_vllm.distribution(stub, "others", general=["one"], platform=["two"], stat_logger=["three"])
    stub_vllm.distribution(stub, "routes", endpoint=["four"])
    assert sorted(installed_plugins()) == sorted([*before, "one", "two", "three"])
    named = environment({"HOME": "/"}, None)
    assert {"one", "two", "three", "roadint"} <= set(named["VLLM_PLUGINS"].split(","))
    assert "four" not in named["VLLM_PLUGINS"].split(",")
    assert named["VLLM_PLUGINS"].split(",").count("roadint") == 1
    assert (named["HOME"], "VLLM_API_KEY" in named) == ("/", False)
    for chosen, expected in {"": "roadint", "one": "one,roadint", "roadint,x": "roadint,x"}.items():
        assert environment({"VLLM_PLUGINS": chosen}, "k")["VLLM_PLUGINS"] == expected
    stub_vllm.distribution(stub, "both", general=["five"], endpoint=["five"])
    with pytest.raises(RoadError, match="plugins 'five' add routes to the server"):
        environment({}, None)
    assert environment({"VLLM_PLUGINS": "five"}, None)["VLLM_PLUGINS"] == "five,roadint"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "it said nothing"),
        (["one", "two", ""], "two"),
        (
            [
                "(EngineCore pid=1) ERROR 11-27 03:41:22 [core.py:9] Traceback (most recent call last):",
                "(EngineCore pid=1) ERROR 11-27 03:41:22 [core.py:9] ValueError: no room: 3 > 2",
                "(APIServer pid=2) Traceback (most recent call last):",
                "(APIServer pid=2) RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "no room: 3 > 2",
        ),
        (["roadint.errors.RoadError: runs/a is no checkpoint", "bye"], "runs/a is no checkpoint"),
        (
            ["pydantic_core.ValidationError: 1 validation error for X", "  Value error, too long"],
            "1 validation error for X Value error, too long",
        ),
        (["usage: roadint serve", "roadint: error: unrecognized arguments: --x"],
         "roadint: error: unrecognized arguments: --x"),
        (["error: port 1 of here can't be had"], "port 1 of here can't be had"),
    ],
)  # fmt: skip
def test_the_line_that_says_why(lines: list[str], said: str) -> None:
    assert last_error([f"{line}\n" for line in lines]) == said


def test_roadints_part_goes_beside_others() -> None:
    assert with_roadint(None, {"a": 1}) == {"roadint": {"a": 1}}
    assert with_roadint({"b": 2}, {"a": 1}) == {"b": 2, "roadint": {"a": 1}}
    with pytest.raises(SystemExit, match="has a part 'roadint'"):
        with_roadint({"roadint": {}}, {"a": 1})


def test_a_servers_output_is_read_on_whatever_becomes_of_it(
    stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stop at a full pipe; and a long one would fill the memory."""
    monkeypatch.setattr("roadint.engines.vllm.http.server._KEPT", 10)

    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    with Server(settings(), "127.0.0.1", free_port()) as server:
        server.wait_until_ready()
        server._shown = Full()  # type: ignore[assignment]
        with httpx.Client() as client:
            for _ in range(60):
                client.get(f"{server.url}/health")  # a line of the log each
        wait_until(lambda: len(server._lines) > 5)
        assert server._reader.is_alive()
        assert len(server._lines) <= 21
