"""The app on a server: what it asks of it, and what pages are told. The server is a small one of our own."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from roadint import RoadError
from roadint.checkpoint.reading import read
from roadint.demo.handlers import Handlers
from roadint.demo.requests import AnswerSettings
from roadint.demo.server_answers import ServerAnswers
from roadint.demo.server_client import ServerClient
from roadint.demo.service import Service
from roadint.grammar.composition import Composition
from tests.demo.helpers import HOSTILE
from tests.helpers import build, trained


class OpenAIServer:
    """As much of a server as the app asks for; it answers with the composition, word by word."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.served = folder, {"": folder / "first"}
        self.requests: list[dict[str, Any]] = []
        self.open, self.most, self.broken = 0, 0, 0
        self.counting, self.going = threading.Lock(), threading.Event()
        self.going.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.handle(self, None)

            def do_DELETE(self) -> None:
                server.handle(self, None)

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                server.handle(self, json.loads(self.rfile.read(length)))

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def handle(self, http: Any, body: Any) -> None:
        if http.headers.get("authorization") != "Bearer secret":
            self.answer(http, 401, {"error": "Unauthorized"})
        elif http.path == "/v1/models":
            self.answer(http, 200, {"data": [{"id": "tiny"}, {"id": "tiny:a"}]})
        elif http.path in ("/v1/completions", "/v1/chat/completions"):
            self.requests.append({**body, "path": http.path})
            self.stream(http, body)
        elif http.command == "DELETE":
            del self.served[http.path.rpartition("/")[2]]
            self.answer(http, 200, {"deleted": True})
        elif body is None:
            told = [self.about(label) for label in self.served]
            self.answer(http, 200, {"data": told})
        elif not (self.folder / "server" / body["path"]).is_dir():
            self.answer(http, 404, {"error": {"message": f"checkpoint {body['path']!r} is not in"}})
        else:
            self.served[body["label"]] = self.folder / "server" / body["path"]
            self.answer(http, 200, self.about(body["label"]))

    def about(self, label: str) -> dict[str, Any]:
        saved = read(self.served[label])
        names = [f"{name}@{label}" if label else name for name in saved.names()]
        return {"label": label, "names": names, "fingerprint": saved.config["sha256"]}

    def answer(self, http: Any, status: int, content: Any) -> None:
        payload = json.dumps(content).encode()
        http.send_response(status)
        http.send_header("content-length", str(len(payload)))
        http.end_headers()
        http.wfile.write(payload)

    def stream(self, http: Any, body: Any) -> None:
        composition = body["vllm_xargs"]["roadint"]
        if "b" in composition.split(" "):
            message = f"no room for {HOSTILE}"
            self.answer(http, 400, {"error": {"message": message, "code": 400}})
            return
        with self.counting:
            self.open += 1
            self.most = max(self.most, self.open)
        http.send_response(200)
        http.send_header("content-type", "text/event-stream")
        http.send_header("connection", "close")
        http.end_headers()
        try:
            for count in range(1, body["max_tokens"] + 1):
                self.going.wait(10)
                text = f" {composition}"
                choice = {"text": text} if "prompt" in body else {"delta": {"content": text}}
                event = {"choices": [choice], "usage": {"completion_tokens": count}}
                http.wfile.write(f": alive\n\ndata: {json.dumps(event)}\n\n".encode())
                http.wfile.flush()
                if body["max_tokens"] > 20:
                    time.sleep(0.01)
            if "2.0" in str(body["temperature"]):
                http.wfile.write(b'data: {"error": {"message": "the engine died"}}\n\n')
                return
            http.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.broken += 1
        finally:
            with self.counting:
                self.open -= 1
            http.close_connection = True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OpenAIServer]:
    road = trained(build("llama"))
    for name in ("first", "runs/second", "runs/third", "server/second"):
        road.save_pretrained(tmp_path / name)
    server = OpenAIServer(tmp_path)
    yield server
    server.going.set()
    server.http.shutdown()
    server.http.server_close()


def connect(server: OpenAIServer, key: str = "secret", name: str = "first") -> ServerAnswers:
    client = ServerClient(f"{server.url}/v1/", key)
    return ServerAnswers(client, read(server.folder / name))


@pytest.fixture
def service(server: OpenAIServer, tmp_path: Path) -> Service:
    first = str(tmp_path / "first")
    service = Service(first, folder=tmp_path / "runs", connect=lambda: connect(server))
    assert service.wait(60), service.status
    return service


def test_answers_are_the_servers_each_through_its_composition(
    service: Service, server: OpenAIServer
) -> None:
    record = Handlers(service).answers("say it", ["none", "a", "0.5*a"], 3, 0.5, -1)
    assert [answer["text"] for answer in record["answers"]] == ["none none none", "a a a", "0.5*a 0.5*a 0.5*a"]  # fmt: skip
    assert (record["model"], record["tokens"]) == ("tiny", 9)
    for request in server.requests:
        assert request["path"] == "/v1/completions"
        assert request["prompt"] == "say it"
        assert (request["model"], request["max_tokens"]) == ("tiny", 3)
        assert (request["temperature"], request["seed"]) == (0.5, 2**63 - 1)
        assert request["repetition_penalty"] == 1.1
    assert {request["vllm_xargs"]["roadint"] for request in server.requests} == {"none", "a", "0.5*a"}  # fmt: skip
    assert service.status == f"tiny, served by vLLM at {server.url}"


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_prompts_have_the_form_of_the_training(
    server: OpenAIServer, tmp_path: Path, template: str
) -> None:
    road = trained(build("llama"))
    road.template = template  # type: ignore[assignment]
    shutil.rmtree(tmp_path / "first")
    road.save_pretrained(tmp_path / "first")
    *_, last = connect(server).answers("say it", [Composition()], AnswerSettings(2))
    assert last.texts == ["none none"]
    (request,) = server.requests
    if template == "chat":
        assert request["messages"] == [{"role": "user", "content": "say it"}]
    else:
        assert request["prompt"].endswith("### Instruction:\nsay it\n\n### Response:\n")


def test_pages_do_not_wait_for_each_other(service: Service, server: OpenAIServer) -> None:
    """Nor a page for its own answers, which grow at the same time."""
    server.going.clear()
    done: list[Any] = []

    def ask() -> None:
        done.append(Handlers(service).answers("say", ["none", "a"], 2))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while server.open < 6:
        assert time.monotonic() < end
        time.sleep(0.02)
    server.going.set()
    for thread in threads:
        thread.join(20)
    assert len(done) == 3
    assert server.most == 6


def test_who_goes_ends_the_answers_of_the_server(service: Service, server: OpenAIServer) -> None:
    answers = service.answering.answers("say", [Composition()], AnswerSettings(512))
    assert next(update for update in answers if update.tokens).tokens < 512
    answers.close()
    end = time.monotonic() + 20
    while server.open:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert server.broken == 1
    assert len(service.answering.requests) == 0  # type: ignore[attr-defined]


def test_the_server_is_not_asked_for_more_than_is_allowed(
    service: Service, server: OpenAIServer
) -> None:
    server.going.clear()
    started = [
        service.answering.answers("say", [Composition()], AnswerSettings(1), "me") for _ in range(9)
    ]
    for updates in started[:8]:
        next(updates)
    with pytest.raises(RoadError, match="8 requests of yours"):
        next(started[8])
    for updates in started:
        updates.close()
    for prompt, compositions, said in [
        (" ", [Composition()], "the prompt is empty"),
        ("x" * 20_000, [Composition()], "20,000 characters"),
        ("say", [], "nothing to compare"),
        ("say", [Composition()] * 33, "33 compositions at once"),
    ]:
        with pytest.raises(RoadError, match=said):
            next(service.answering.answers(prompt, compositions, AnswerSettings(1)))


def test_what_the_server_refuses_is_told_to_who_asked(
    service: Service, server: OpenAIServer
) -> None:
    do = Handlers(service)
    *_, shown = do.compare("say", ["none", "b"], 4, 0, 0, 1, [])
    assert "no room for <img" in shown
    *_, shown = do.compare("say", ["none"], 4, 2.0, 0, 1, [])
    assert "the engine died" in shown
    assert do.answers("say", ["a"], 1)["tokens"] == 1
    server.http.shutdown()
    server.http.server_close()
    *_, shown = do.compare("say", ["a"], 4, 0, 0, 1, [])
    assert f"the server at {server.url} does not answer" in shown


def test_checkpoints_are_the_servers(
    service: Service, server: OpenAIServer, tmp_path: Path
) -> None:
    """The same values under the same name, or none."""
    assert service.open("second") == "second"
    assert server.served["second"] == tmp_path / "server" / "second"
    assert service.names(["second"]) == ["a", "b", "a@second", "b@second"]
    do = Handlers(service)
    *_, last = do.compare("say", ["a@second"], 2, 0, 0, 1, ["second"])
    assert "a@second a@second" in last
    with pytest.raises(RoadError, match="checkpoint 'third' is not in"):
        service.open("third")
    other = trained(build("llama"))
    with torch.no_grad():
        next(iter(other.interventions)).theta.zero_()
    other.save_pretrained(tmp_path / "server" / "third")
    with pytest.raises(RoadError, match="'third' is another checkpoint at the server"):
        service.open("third")
    assert list(server.served) == ["", "second"]


def test_a_server_that_has_a_checkpoint_already_keeps_it(
    server: OpenAIServer, tmp_path: Path
) -> None:
    """As after the app was started again; another one of that label is not taken for it."""
    answers = connect(server)
    server.served["second"] = tmp_path / "server" / "second"
    assert answers.add_checkpoint(tmp_path / "runs" / "second", "second", "second") == ["a@second", "b@second"]  # fmt: skip
    trained(build("qwen3")).save_pretrained(tmp_path / "runs" / "fourth")
    with pytest.raises(RoadError, match="another checkpoint of the label 'second'"):
        answers.add_checkpoint(tmp_path / "runs" / "fourth", "fourth", "second")
    answers.remove_checkpoint("second")
    assert list(server.served) == [""]


def test_what_needs_the_model_says_so(service: Service) -> None:
    shown = Handlers(service).look("say", "a", 1, [])
    assert "a server answers here" in shown
    assert "roadint demo without --server" in shown


def test_a_server_that_can_t_be_used_is_told(server: OpenAIServer, tmp_path: Path) -> None:
    trained(build("qwen3")).save_pretrained(tmp_path / "other")
    for key, name, said in [
        ("wrong", "first", "asks for a token: give it as --api-key"),
        ("secret", "other", "does not serve .*other without a label: .* with 'a', 'b'"),
    ]:
        with pytest.raises(RoadError, match=said):
            connect(server, key, name)
    with pytest.raises(RoadError, match="answers 404 to /other/v1/roadint/checkpoints: expected"):
        del server.served[""]
        http = server.http.RequestHandlerClass
        http.do_GET = lambda self: server.answer(self, 404, {"detail": "Not Found"})  # type: ignore[attr-defined]
        ServerAnswers(ServerClient(f"{server.url}/other", "secret"), read(tmp_path / "first"))
    for url in ("", "there", "ftp://there", "http://"):
        with pytest.raises(RoadError, match="expected one such as http://127.0.0.1:8000"):
            ServerClient(url)
