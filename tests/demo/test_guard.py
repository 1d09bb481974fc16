"""The app over HTTP, on a tiny model: what a hostile client sends it, and what everybody else is given meanwhile."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client

from roadint.demo import service as service_module
from roadint.demo.app import launch
from roadint.demo.guard import MAX_BODY_BYTES
from roadint.demo.service import Service
from tests.helpers import build, make_tokenizer, trained

JSON = {"content-type": "application/json"}


class App:
    """The running app and what a client needs to know of it."""

    def __init__(self, service: Service, url: str) -> None:
        self.service, self.url = service, url
        config = httpx.get(f"{url}config", timeout=60).json()
        self.functions = {
            function["api_name"]: function["id"] for function in config["dependencies"]
        }

    def join(self, name: str, data: list[Any], session: str, client: Any = httpx) -> httpx.Response:
        body = json.dumps({"data": data, "fn_index": self.functions[name], "session_hash": session})
        response: httpx.Response = client.post(
            f"{self.url}gradio_api/queue/join", content=body, headers=JSON, timeout=60
        )
        return response

    def shown(self, name: str, data: list[Any], session: str) -> list[Any]:
        """What the page would show in the end."""
        assert self.join(name, data, session).status_code == 200
        output: list[Any] = []
        with httpx.stream(
            "GET", f"{self.url}gradio_api/queue/data", params={"session_hash": session}, timeout=60
        ) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                if message.get("msg") == "process_completed":
                    output = message["output"].get("data") or [message["output"]]
                    break
        return output


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    folder = tmp_path_factory.mktemp("app")
    road, tokenizer = trained(build("llama")).eval(), make_tokenizer()
    road.save_pretrained(folder / "first")
    road.save_pretrained(folder / "runs" / "second")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "open_checkpoint", lambda *_: (road, tokenizer))
        service = Service(str(folder / "first"), folder=folder / "runs")
        assert service.wait(60), service.status
    _, url, _ = launch(service, prevent_thread_lock=True, quiet=True)
    return App(service, url)


def compare(prompt: Any, length: Any = 4, chosen: Any = ("a",)) -> list[Any]:
    return [prompt, list(chosen), length, 0, 0, 1, None]


def test_no_files_and_no_long_bodies_come_in(app: App, tmp_path: Path) -> None:
    """Not even where the sender does not say how long they are."""
    api = f"{app.url}gradio_api/"
    assert (
        httpx.post(f"{api}upload", files={"files": b"x" * 5_000_000}, timeout=60).status_code == 403
    )
    for path in (
        "file=/etc/passwd",
        f"file={tmp_path}",
        "file=https://example.org",
        "proxy=https://example.org",
        "deep_link",
    ):
        assert httpx.get(api + path, timeout=60).status_code == 403
    for path in ("component_server", "process_recording", "vibe-edit", "stream/x", "nothing"):
        assert httpx.post(api + path, json={}, timeout=60).status_code == 403
    long = app.join("compare", compare("x" * MAX_BODY_BYTES), "long")
    assert (long.status_code, "shorten" in long.json()["detail"]) == (413, True)

    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            yield b" " * (MAX_BODY_BYTES // 2)

    assert httpx.post(f"{api}queue/join", content=chunks(), timeout=60).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1",
        b"[]",
        b"[" * 100_000,
        b'{"data": ' + b"[" * 50 + b"]" * 50 + b"}",
        b'{"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}',
        b'{"data": [[{"path": "/etc/passwd"}]]}',
        b'{"data": [1e5' + b"0" * 5000 + b", " + b"1" * 5000 + b"]}",
        b'{"data": [], "session_hash": "\\ud800"}',
        b'{"data": [], "session_hash": "' + b"x" * 5000 + b'"}',
        b'{"data": [], "session_hash": 5}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_bodies_that_are_no_request_are_refused(app: App, body: bytes) -> None:
    for path in ("queue/join", "call/answers"):
        response = httpx.post(f"{app.url}gradio_api/{path}", content=body, headers=JSON, timeout=60)
        assert response.status_code == 400
        assert response.json()["detail"]


def test_the_page_is_told_what_is_wrong(app: App) -> None:
    """The same as the endpoint for programs, over the whole way there and back."""
    for number, (data, message) in enumerate(
        [
            (compare("a\0b"), "NUL"),
            (compare("a\ud800b"), "surrogate"),
            (compare("word " * 20_000), "100,000 characters"),
            (compare("say", float("nan")), "new tokens nan"),
            (compare("say", "4"), "new tokens '4'"),
            (compare("say", chosen=["<img src=x onerror=alert(1)>"]), "is not understood"),
        ]
    ):
        session = f"told{number}"
        shown = app.shown("compare", data, session)[0]
        assert message in json.loads(shown)["error"]
    assert json.loads(app.shown("compare", compare("say"), "fine")[0])["done"]
    client = Client(app.url, verbose=False)
    with pytest.raises(Exception, match="the seed 'x' is no whole number"):
        client.predict("say", ["a"], 4, 0, "x", api_name="/answers")
    with pytest.raises(Exception, match="no finite number"):
        client.predict("say", ["a"], 4, "warm", 0, api_name="/answers")
    assert (
        client.predict("say", ["none", "a"], 4, api_name="/answers")["answers"][1]["composition"]
        == "a"
    )


def test_pages_have_their_own_names(app: App) -> None:
    assert "a@second" in app.shown("open", ["second", None, []], "one")[0]
    second = compare("say", chosen=["a@second"])
    assert json.loads(app.shown("compare", second, "one")[0])["done"]
    other = app.shown("compare", [*second[:-1], ["second"]], "two")[0]
    assert "unknown subspace" in other
    assert json.loads(app.shown("compare", second, "one")[0])["done"]


def test_whoever_goes_frees_the_rows(app: App) -> None:
    """A page that is closed while its answers are written."""
    batcher = app.service.batcher
    app.join("compare", compare("say it", 512, ["a", "b", "none"]), "gone")
    with httpx.stream(
        "GET", f"{app.url}gradio_api/queue/data", params={"session_hash": "gone"}, timeout=60
    ) as stream:
        next(line for line in stream.iter_lines() if "process_generating" in line)
    started = time.monotonic()
    while len(batcher.requests):
        assert time.monotonic() - started < 20
        time.sleep(0.05)


def test_a_flood_does_not_stop_the_others(app: App) -> None:
    """Hundreds of long requests by one who reads none of the answers: another one is answered, before and after it ends."""
    batcher, stop = app.service.batcher, threading.Event()
    codes: list[int] = []
    most = 0

    def flood(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            for turn in range(15):
                if stop.is_set():
                    return
                data = compare("say it again", 512, ["a", "b", "none"])
                data[4:6] = [0.9, turn]  # sampled: none shares its batch
                session = "hostile" if number % 2 else f"hostile{number}x{turn}"
                codes.append(app.join("compare", data, session, client).status_code)

    client = Client(app.url, verbose=False)
    threads = [threading.Thread(target=flood, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)
        started = time.monotonic()
        for _ in range(2):
            record = client.predict("say", ["none", "a"], 4, api_name="/answers")
            assert len(record["answers"]) == 2
            most = max(most, len(batcher.requests))
        assert time.monotonic() - started < 60
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert most <= 64
    assert set(codes) <= {200, 503}
    while len(batcher.requests):  # what nobody reads is not gone on with
        assert time.monotonic() - started < 120
        time.sleep(0.1)
    assert client.predict("say", ["none"], 4, api_name="/answers")["tokens"] > 0
