"""The server's routes: checkpoints come and go, from the allowed folder alone."""

import asyncio
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from roadint.checkpoint.reading import read
from roadint.engines.vllm.http.routes import RoadRoutes
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.served import Base, open_served
from tests.demo.helpers import HOSTILE, no_network
from tests.helpers import LAYERS, WIDTH, build, trained, with_adapters

URL = "/v1/roadint/checkpoints"
BASE = Base(WIDTH, LAYERS, "llama")


class Core:
    """An engine's core, which here is only asked to load and to unload."""

    def __init__(self) -> None:
        self.refuses = ""
        self.calls: list[tuple[str, ...]] = []

    async def call_utility_all_async(self, method: str, label: str, *paths: str) -> list[Any]:
        await asyncio.sleep(0.01)
        self.calls.append((method, label))
        if self.refuses:
            return [{"error": self.refuses}]
        return [{"about": open_served(paths[0], BASE).about()} if paths else {}]


class Models:
    """What vLLM knows of its models."""

    def __init__(self) -> None:
        self.base_model_paths = [SimpleNamespace(name="tiny")]
        self.lora_requests = {"lora": None}

    async def show_available_models(self) -> Any:
        cards = [{"id": "tiny", "parent": None, "root": "/x"}, {"id": "lora", "parent": "tiny"}]
        return SimpleNamespace(model_dump=lambda: {"object": "list", "data": cards})


class Server:
    """vLLM's application with roadint's routes, and an engine that serves `first`."""

    def __init__(self, folder: Path | None, first: Path | None, processes: int = 1) -> None:
        self.registry, self.core = Registry(BASE), Core()
        if first is not None:
            self.registry.load("", open_served(str(first), BASE))
        config: dict[str, Any] = {} if folder is None else {"roadint": {"folder": str(folder)}}
        engine = SimpleNamespace(
            vllm_config=SimpleNamespace(
                additional_config=config,
                parallel_config=SimpleNamespace(_api_process_count=processes),
            ),
            input_processor=SimpleNamespace(roadint=self.registry if first else None),
            engine_core=self.core,
        )
        self.app, routes = FastAPI(), RoadRoutes()
        self.app.state.openai_serving_models = Models()
        routes.attach_router(self.app)
        asyncio.run(routes.init_state(engine, self.app.state, Namespace()))

    def ask(self, *requests: tuple[str, str, Any]) -> list[tuple[int, Any]]:
        """The answers to requests that are sent at the same time."""

        async def all_of() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                sent = [
                    client.request(method, path, **({"json": body} if body is not None else {}))
                    for method, path, body in requests
                ]
                return await asyncio.gather(*sent)

        return [(answer.status_code, answer.json()) for answer in asyncio.run(all_of())]

    def load(self, label: Any, path: Any) -> tuple[int, Any]:
        (answer,) = self.ask(("POST", URL, {"label": label, "path": path}))
        return answer


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    model = build("llama")
    trained(model).save_pretrained(tmp_path / "runs" / "first")
    trained(model).save_pretrained(tmp_path / "runs" / "deep" / "second")
    with_adapters(build("gemma3"), "style").save_pretrained(tmp_path / "runs" / "foreign")
    shutil.copytree(tmp_path / "runs" / "first", tmp_path / "outside")
    return tmp_path / "runs"


@pytest.fixture
def server(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    no_network(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Server(runs, runs / "first")


def message(answer: tuple[int, Any]) -> str:
    status, content = answer
    error = content["error"]
    assert error["code"] == status
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(error["message"].splitlines()) == 1
    return str(error["message"])


def test_checkpoints_come_and_go(server: Server, runs: Path) -> None:
    fingerprint = read(runs / "first").config["sha256"]
    first = {
        "object": "roadint.checkpoint",
        "label": "",
        "names": ["a", "b"],
        "fingerprint": fingerprint,
    }
    assert server.ask(("GET", URL, None)) == [
        (200, {"object": "list", "data": [first], "names": ["a", "b"]})
    ]
    status, told = server.load("x", "deep/second")
    assert (status, told["label"], told["names"]) == (200, "x", ["a@x", "b@x"])
    ((_, listed),) = server.ask(("GET", URL, None))
    assert listed["names"] == ["a", "b", "a@x", "b@x"]
    assert str(runs) not in str(listed)
    ((_, models),) = server.ask(("GET", "/v1/models", None))
    assert [card["id"] for card in models["data"]] == [
        "tiny",
        "lora",
        *(f"tiny:{name}" for name in listed["names"]),
    ]
    ((status, gone),) = server.ask(("DELETE", f"{URL}/x", None))
    assert (status, gone["deleted"]) == (200, True)
    assert list(server.registry.served) == [""]
    (answer,) = server.ask(("DELETE", f"{URL}/x", None))
    assert answer[0] == 404
    assert "no checkpoint 'x': the labels are ''" in message(answer)


def test_paths_are_those_of_the_folder(server: Server, runs: Path) -> None:
    (runs / "link").symlink_to(runs.parent / "outside")
    for path in ("../outside", str(runs.parent / "outside"), "link", "~", "a\0b", "nobody/x"):
        answer = server.load("x", path)
        assert answer[0] == 404
        assert str(runs.parent) not in message(answer).replace(path, "")
    assert not server.core.calls
    assert server.load("x", str(runs / "first"))[0] == 200


@pytest.mark.parametrize(
    ("label", "path", "said"),
    [
        ("", "first", "label ''"),
        (None, "first", "label None is no text"),
        (["x"], "first", "label"),
        ("x", 5, "path 5 is no text"),
        ("x", " ", "path ' '"),
        ("x", "a" * 301, "no text of 1 to 300"),
        ("a b", "first", "label 'a b' of a checkpoint is not a plain word"),
        (HOSTILE, "first", "is not a plain word"),
        ("x", "foreign", "expected its own base model"),
    ],
)
def test_what_is_no_checkpoint_for_this_model_is_400(
    server: Server, runs: Path, label: Any, path: Any, said: str
) -> None:
    answer = server.load(label, path)
    assert answer[0] == 400
    assert said in message(answer)
    assert str(runs) not in message(answer)
    assert list(server.registry.served) == [""]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"[" * 100_000, b'{"label": "x"}'])
def test_bodies_that_are_no_request_are_400(server: Server, body: bytes) -> None:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            kind = {"content-type": "application/json"}
            return await client.post(URL, content=body, headers=kind)

    response = asyncio.run(send())
    assert "expected {" in message((response.status_code, response.json()))


def test_an_unknown_field_is_named(server: Server) -> None:
    (answer,) = server.ask(("POST", URL, {"label": "x", "path": "first", "strength": 2}))
    assert "unknown field 'strength'" in message(answer)


def test_of_two_that_want_a_label_one_has_it(server: Server) -> None:
    asked = ("POST", URL, {"label": "x", "path": "first"})
    first, second = sorted(server.ask(asked, asked), key=lambda answer: answer[0])
    assert (first[0], second[0]) == (200, 409)
    assert "label 'x' is taken" in message(second)
    assert server.core.calls == [("roadint_load", "x")]


def test_what_the_engine_refuses_is_told_without_its_paths(server: Server, runs: Path) -> None:
    server.core.refuses = f"{runs / 'first'} can't be served:\nno layer of it was armed"
    answer = server.load("x", "first")
    assert answer[0] == 400
    assert message(answer) == "first can't be served: no layer of it was armed"


def test_without_a_folder_nothing_is_loaded(runs: Path) -> None:
    server = Server(None, runs / "first")
    answer = server.load("x", "first")
    assert answer[0] == 403
    assert "start it with a folder" in message(answer)
    assert server.ask(("GET", URL, None))[0][0] == 200


def test_several_processes_keep_the_checkpoints_that_they_began_with(runs: Path) -> None:
    """What one of them is told, the others would not know."""
    server = Server(runs, runs / "first", processes=2)
    answer = server.load("x", "first")
    assert answer[0] == 400
    assert "expected --api-server-count 1" in message(answer)
    assert not server.core.calls


def test_an_engine_without_roadint_keeps_its_list_of_models() -> None:
    server = Server(None, None)
    ((_, models),) = server.ask(("GET", "/v1/models", None))
    assert [card["id"] for card in models["data"]] == ["tiny", "lora"]
    (answer,) = server.ask(("GET", URL, None))
    assert answer[0] == 404
    assert "started without roadint" in message(answer)


@pytest.mark.parametrize("asked", ["gemn", "first + ", {"compose": "nobody"}])
def test_what_is_not_understood_is_refused_before_a_stream_begins(
    server: Server, asked: Any
) -> None:
    """vLLM reads a composition when the answer has begun, with status 200."""
    reached: list[Any] = []

    @server.app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, Any]:
        reached.append(await request.json())
        return {}

    body = {"model": "tiny", "stream": True, "vllm_xargs": {"roadint": asked}}
    (answer,) = server.ask(("POST", "/v1/chat/completions", body))
    assert (answer[0], reached) == (400, [])
    bare = Server(None, None)

    @bare.app.post("/v1/chat/completions")
    async def plain(request: Request) -> dict[str, Any]:
        return {}

    for arguments in ({}, {"other_plugin": 1}):  # no business of ours
        (passed,) = bare.ask(
            ("POST", "/v1/chat/completions", {"model": "tiny", "vllm_xargs": arguments})
        )
        assert passed[0] == 200
    named = {**body, "model": "tiny:a", "vllm_xargs": {}}
    typo = {**body, "vllm_xargs": {"raodint": "a"}}
    answers = server.ask(
        ("POST", "/v1/chat/completions", named), ("POST", "/v1/chat/completions", typo)
    )
    assert [status for status, _ in answers] == [200, 400]
    assert [each["vllm_xargs"] for each in reached] == [{"roadint": "a"}]
