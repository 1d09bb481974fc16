"""Compositions in the names of models: what reaches the engine, and what is refused before it."""

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from roadint import RoadError
from roadint.engines.vllm.http.model_names import ModelNames, resolve, split_name

CHAT = "/v1/chat/completions"
SERVED = ["gemma", "gemma:2b", "my lora", "org/gemma"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("gemma", ("gemma", None)),
        ("gemma:german + 0.5*english@b", ("gemma", "german + 0.5*english@b")),
        ("gemma : german", ("gemma", "german")),
        ("gemma:", ("gemma", "")),
        ("gemma:2b", ("gemma:2b", None)),
        ("gemma:2b:german", ("gemma:2b", "german")),
        ("gemma:german:2b", ("gemma", "german:2b")),
        ("gemma:2bc", ("gemma", "2bc")),
        ("my lora:german", ("my lora", "german")),
        ("org/gemma:none", ("org/gemma", "none")),
        ("gemma2:german", ("gemma2:german", None)),
        ("other:german", ("other:german", None)),
        (":german", (":german", None)),
        ("", ("", None)),
    ],
)
def test_a_name_is_split_after_the_longest_name_that_is_served(
    name: str, split: tuple[str, str | None]
) -> None:
    assert split_name(name, SERVED) == split


def test_the_composition_goes_beside_other_arguments() -> None:
    request = {"model": "gemma:german", "vllm_xargs": {"other": 1}, "stream": True}
    assert resolve(CHAT, request, SERVED) == {
        "model": "gemma",
        "vllm_xargs": {"other": 1, "roadint": "german"},
        "stream": True,
    }
    assert request["vllm_xargs"] == {"other": 1}
    same = {"model": "gemma:german", "vllm_xargs": {"roadint": "german"}}
    assert resolve(CHAT, same, SERVED)["vllm_xargs"] == {"roadint": "german"}


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "gemma", "vllm_xargs": {"roadint": "german"}},
        {"model": "gemma:2b", "use_beam_search": True},
        {"model": "nobody:german", "use_beam_search": True},
        {"model": None},
        {"model": ["gemma:german"]},
        {},
        {"model": "gemma:german", "vllm_xargs": "roadint"},
        {"model": "gemma", "vllm_xargs": {"roadint": "none"}, "use_beam_search": True},
        {"model": "gemma", "vllm_xargs": {"roadint": None}, "use_beam_search": True},
    ],
    ids=str,
)
def test_everything_else_stays_as_it_is(request_: dict[str, Any]) -> None:
    assert resolve(CHAT, request_, SERVED) is request_


@pytest.mark.parametrize(
    ("path", "request_", "message"),
    [
        (CHAT, {"model": "gemma:german", "vllm_xargs": {"roadint": "english"}}, "two compositions"),
        (CHAT, {"model": "gemma:german", "use_beam_search": True}, "beam search drops"),
        ("/v1/completions", {"vllm_xargs": {"roadint": "a"}, "use_beam_search": 1}, "beam search"),
        ("/v1/systemone", {"vllm_xargs": {"roadint": "a"}}, "would not act: expected one of '/v1/"),
        ("/v1/embeddings", {"vllm_xargs": {"roadint": "a"}}, "takes no composition"),
    ],
)
def test_what_would_drop_the_composition_is_refused(
    path: str, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(RoadError, match=message):
        resolve(path, request_, SERVED)


def test_routes_that_count_take_the_name_alone() -> None:
    request = {"model": "gemma:german", "prompt": "one"}
    assert resolve("/tokenize", request, SERVED) == {"model": "gemma", "prompt": "one"}
    assert resolve("/v1/embeddings", request, SERVED) is request  # vLLM knows no such model


class Behind:
    """The application behind the middleware: what reaches it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.headers: dict[bytes, bytes] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = dict(scope.get("headers", ()))
        while not self.messages or self.messages[-1].get("more_body"):
            self.messages.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.messages.append(await receive())  # as who waits for the client to go

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def pass_on(
    parts: list[bytes], path: str = CHAT, kind: bytes = b"application/json", **scope: Any
) -> tuple[Behind, list[Any]]:
    """What reaches the application, and what is sent to the client."""
    models = SimpleNamespace(
        base_model_paths=[SimpleNamespace(name="gemma")], lora_requests={"lora": None}
    )
    asked: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"content-type", kind), (b"content-length", b"7")],
        "app": SimpleNamespace(state=SimpleNamespace(openai_serving_models=models)),
        **scope,
    }
    behind, sent = Behind(), []
    incoming = iter(
        [
            *(
                {"type": "http.request", "body": part, "more_body": index < len(parts) - 1}
                for index, part in enumerate(parts)
            ),
            {"type": "http.disconnect"},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ModelNames(behind)(asked, receive, send))
    return behind, sent


def test_a_body_in_parts_is_resolved_and_the_client_may_go_meanwhile() -> None:
    text = json.dumps({"model": "lora: german", "prompt": "ü \ud800", "n": 1e30}).encode()
    behind, sent = pass_on([text[:5], text[5:9], text[9:]], root_path="", path="/v1/completions")
    assert json.loads(behind.body) == {
        "model": "lora",
        "prompt": "ü \ud800",
        "n": 1e30,
        "vllm_xargs": {"roadint": "german"},
    }
    assert behind.headers[b"content-length"] == str(len(behind.body)).encode()
    assert behind.messages[-1] == {"type": "http.disconnect"}
    assert sent[0]["status"] == 200


def unchanged() -> Iterator[Any]:
    named = b'{"model":  "gemma:german"}'
    yield [b'{"model":  "gemma", "vllm_xargs": {"roadint": "a"}}'], {}
    yield [named[:4], named[4:]], {"path": "/v1/embeddings"}
    yield [named], {"kind": b"multipart/form-data; boundary=x"}
    yield [named], {"method": "PUT"}
    yield [named], {"path": "/v1/other/chat/completions"}
    yield [b"{no json"], {}
    yield [b"[" * 100_000], {}
    yield [b"[1]"], {}
    yield [b""], {}


@pytest.mark.parametrize(("parts", "scope"), unchanged())
def test_other_requests_keep_every_byte(parts: list[bytes], scope: dict[str, Any]) -> None:
    behind, sent = pass_on(parts, **scope)
    assert behind.body == b"".join(parts)
    assert behind.headers[b"content-length"] == b"7"
    assert sent[0]["status"] == 200


def test_under_a_path_of_its_own_the_server_finds_its_routes() -> None:
    behind, _ = pass_on([b'{"model": "gemma:a"}'], path=f"/proxied{CHAT}", root_path="/proxied")
    assert json.loads(behind.body)["vllm_xargs"] == {"roadint": "a"}


def test_a_refusal_has_the_form_of_openais() -> None:
    behind, (start, body) = pass_on([b'{"model": "gemma:a", "use_beam_search": true}'])
    assert start["status"] == 400
    error = json.loads(body["body"])["error"]
    assert error["code"] == 400
    assert "beam search" in error["message"]
    assert not behind.messages


def test_what_is_no_request_of_http_passes() -> None:
    passed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        asyncio.run(ModelNames(app)({"type": kind}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan", "websocket"]
