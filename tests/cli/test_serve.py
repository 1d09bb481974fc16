"""`roadint serve` and `roadint demo --server`, whole, on a package named vllm that starts in no time."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests import stub_vllm
from tests.helpers import call, trained


@pytest.fixture
def first(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    stub_vllm.install(tmp_path / "site", monkeypatch)
    road = trained(AutoModelForCausalLM.from_pretrained(base))
    road.save_pretrained(tmp_path / "first")
    return str(tmp_path / "first")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def started(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "roadint", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_line_when_it_is_ready_and_a_signal_ends_it(first: str, tmp_path: Path) -> None:
    told, port = tmp_path / "told", free_port()
    process = started(
        first, "--add", f"x={first}", "--port", port, "--json", "--", "--told", str(told)
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {
        "url": f"http://127.0.0.1:{port}/v1",
        "model": "base0",
        "names": ["a", "b", "a@x", "b@x"],
    }
    process.terminate()
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "", "")
    with pytest.raises(ProcessLookupError):
        os.kill(json.loads(told.read_text())["pid"], 0)


def test_people_read_the_address_and_requests_that_they_can_paste(first: str) -> None:
    port = free_port()
    process = started(first, "--port", port, "--api-key", "secret")
    assert process.stdout is not None
    address, _, *examples = [process.stdout.readline() for _ in range(4)]
    process.send_signal(signal.SIGINT)  # as Ctrl-C
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), errors
    assert f"base0 at http://127.0.0.1:{port}/v1, through a, b" in address
    assert '"vllm_xargs": {"roadint": "a"}' in examples[0]
    assert '"model": "base0:a"' in examples[1]
    for example in examples:
        assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in example
        assert "Authorization: Bearer" in example
        assert "secret" not in example


def test_a_server_that_does_not_start_is_one_line(
    first: str, capsys: Any, monkeypatch: Any
) -> None:
    code, out, errors = call(
        capsys, monkeypatch, "serve", first, "--port", free_port(), "--", "--fail", "start"
    )
    assert (code, out, len(errors.splitlines())) == (2, "", 1)
    assert "the server ended before it was ready: no room" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--add", "a b=FIRST"], "label 'a b'"),
        (["--add", "x"], "expected NAME=VALUE"),
        (["--model", "FIRST"], "can't be read"),
        (["--port", "0"], "'--port'"),
        (["--layer", "3"], "has 3, from 0"),
        (["--unknown"], "No such option"),
    ],
)
def test_bad_input_starts_nothing(
    first: str, arguments: list[str], said: str, capsys: Any, monkeypatch: Any
) -> None:
    def starts(*_: Any, **__: Any) -> Any:
        raise AssertionError("a process is started")

    monkeypatch.setattr(subprocess, "Popen", starts)
    arguments = [text.replace("FIRST", first) for text in arguments]
    code, out, errors = call(capsys, monkeypatch, "serve", first, *arguments)
    assert (code, out, len(errors.splitlines())) == (2, "", 1)
    assert said in errors


def test_without_vllm_one_line(first: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for arguments in (["serve", first], ["demo", first, "--engine", "vllm"]):
        code, out, errors = call(capsys, monkeypatch, *arguments)
        assert (code, out, len(errors.splitlines())) == (2, "", 1)
        assert "vLLM is not installed" in errors


def test_an_app_without_its_server_opens_no_page(first: str, capsys: Any, monkeypatch: Any) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for arguments, said in [
        (["--server", url], f"the server at {url} does not answer"),
        (["--server", "there"], "--server 'there': expected one such as http://127.0.0.1:8000"),
        (["--server", url, "--engine", "vllm"], "leave out others"),
        (["--", "--enforce-eager"], "'--enforce-eager' is for --engine vllm"),
    ]:
        code, out, errors = call(capsys, monkeypatch, "demo", first, *arguments)
        assert (code, out) == (2, "")
        assert said in errors.splitlines()[-1]
