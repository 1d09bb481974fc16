"""A middleware before Gradio, which passes on only the requests that the page needs.

Gradio takes files of any size, fetches addresses for a visitor, stores pages on disk and reads
whole bodies. The app needs none of that: its requests are small JSON texts.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from roadint.demo.streams import OpenStreams

MAX_BODY_BYTES = 1 << 20  # of a request; the longest prompt that is looked at has a tenth
_MAX_DEPTH = 4  # lists in lists, in the values of a request
_PREFIX = "/gradio_api/"
_POSTS = ("queue/join", "call/", "cancel", "reset", "run/", "api/")
_CLOSED = (
    "upload",
    "file=",
    "file/",
    "proxy=",
    "stream/",
    "deep_link",
    "custom_component",
    "component_server",
    "vibe",
    "run-history",
)

# An ASGI application and what it is called with.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI middleware that refuses what the page never sends.

    Args:
        app: The application behind it.
        streams: Counts the open streams of answers.
    """

    def __init__(self, app: Application, streams: OpenStreams) -> None:
        self._app, self._streams = app, streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        endpoint = path.removeprefix(_PREFIX) if path.startswith(_PREFIX) else ""
        if endpoint.startswith(_CLOSED):
            await _answer(send, 403, "the app takes and gives no files")
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._read(scope, receive, send, endpoint)
        elif path.rstrip("/") != "/login" and not endpoint.startswith(_POSTS):
            await _answer(send, 403, "the app has nothing here to write to")
        else:
            await self._write(scope, receive, send, endpoint)

    async def _read(self, scope: Scope, receive: Receive, send: Send, endpoint: str) -> None:
        key = _stream_of(endpoint, scope.get("query_string", b""))
        if key is None:
            await self._app(scope, receive, send)
            return
        self._streams.begin(key)
        try:
            await self._app(scope, receive, send)
        finally:
            self._streams.end(key)

    async def _write(self, scope: Scope, receive: Receive, send: Send, endpoint: str) -> None:
        body = await _body(receive)
        if body is None:
            detail = f"the request is longer than {MAX_BODY_BYTES:,} bytes: shorten what you ask"
            await _answer(send, 413, detail)
            return
        trouble = _trouble(body) if endpoint else None
        if trouble:
            await _answer(send, 400, trouble)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> MutableMapping[str, Any]:
            return messages.pop() if messages else await receive()

        await self._app(scope, receive_again, send)


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None where it is too long, or the sender is gone."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _trouble(body: bytes) -> str | None:
    """What is wrong with a request's JSON, in a line; None where nothing is."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "the request is no JSON that can be read"
    if not isinstance(value, dict):
        return "the request is no JSON object"
    session = value.get("session_hash", "")
    if session is not None and not _is_short_plain_text(session):
        return "session_hash is no short plain text"
    value.pop("event_data", None)  # of clicks; no function of the app asks for it
    if not _is_plain(list(value.values()), _MAX_DEPTH):
        return "the request holds what is neither text nor number, or is nested too deeply"
    return None


def _is_short_plain_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 64 and value.isascii() and value.isprintable()


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value has only texts, numbers and lists: an object could name a file.

    Handlers check the texts and numbers later.
    """
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return not isinstance(value, dict)


def _stream_of(endpoint: str, query: bytes) -> str | None:
    """The session, or the call, whose answers a GET reads; None for anything else."""
    if endpoint == "queue/data":
        return next(iter(parse_qs(query.decode("latin-1")).get("session_hash", ())), None)
    parts = endpoint.strip("/").split("/")
    return parts[-1] if parts[0] == "call" and len(parts) > 2 else None


async def _answer(send: Send, status: int, detail: str) -> None:
    payload = json.dumps({"detail": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(payload)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})
