"""What stands before Gradio: only what the page needs comes through, and no more of it than the page sends.

Gradio takes files of any size, fetches addresses for a visitor, keeps pages on the disk and reads bodies whole. The app needs none
of that: its requests are small JSON texts.
"""

import json
from collections import Counter
from typing import Any
from urllib.parse import parse_qs

MOST_BYTES = 1 << 20  # of a request's body; the longest prompt that is looked at has a tenth
_DEEPEST = 4  # lists in lists, in the values of a request
_POSTS = ("queue/join", "call/", "cancel", "reset", "run/", "api/")  # below /gradio_api/
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
_PREFIX = "/gradio_api/"


class Listening:
    """Which sessions, or calls of the endpoint, have somebody who reads what they are sent."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def __contains__(self, key: object) -> bool:
        return self._open[str(key)] > 0

    def begin(self, key: str) -> None:
        """Somebody has begun to read."""
        self._open[key] += 1

    def end(self, key: str) -> None:
        """And has stopped."""
        self._open[key] -= 1
        if self._open[key] <= 0:
            del self._open[key]


class Guard:
    """An ASGI middleware. listening: told of the streams that are open."""

    def __init__(self, app: Any, listening: Listening) -> None:
        self._app, self._listening = app, listening

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request: answered here, or handed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        inside = path.removeprefix(_PREFIX) if path.startswith(_PREFIX) else None
        if inside is not None and inside.startswith(_CLOSED):
            await _answer(send, 403, "the app takes and gives no files")
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._read(scope, receive, send, inside or "")
        elif path.rstrip("/") != "/login" and not (inside or "").startswith(_POSTS):
            await _answer(send, 403, "the app has nothing here to write to")
        else:
            await self._write(scope, receive, send, inside or "")

    async def _read(self, scope: Any, receive: Any, send: Any, inside: str) -> None:
        key = _stream_of(inside, scope.get("query_string", b""))
        if key is None:
            await self._app(scope, receive, send)
            return
        self._listening.begin(key)
        try:
            await self._app(scope, receive, send)
        finally:
            self._listening.end(key)

    async def _write(self, scope: Any, receive: Any, send: Any, inside: str) -> None:
        body = await _body(receive)
        if body is None:
            await _answer(
                send, 413, f"the request is longer than {MOST_BYTES:,} bytes: shorten what you ask"
            )
            return
        trouble = _trouble(body) if inside else None
        if trouble:
            await _answer(send, 400, trouble)
            return
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


async def _body(receive: Any) -> bytes | None:
    """All of it; None where it is too long or its sender is gone. What comes after the limit is not kept."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        size += len(message.get("body", b""))
        if size > MOST_BYTES:
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
    session = value.get("session_hash")
    if session is not None and not (
        isinstance(session, str)
        and len(session) <= 64
        and session.isascii()
        and session.isprintable()
    ):
        return "session_hash is no short plain text"
    value.pop("event_data", None)  # of clicks; no function of the app asks for it
    if not _plain(list(value.values()), _DEEPEST):
        return "the request holds what is neither text nor number, or is nested too deeply"
    return None


def _plain(value: Any, deep: int) -> bool:
    """Texts, numbers and lists of them; what could name a file is an object. Bad numbers and letters are told later, by name."""
    if isinstance(value, list):
        return deep > 0 and all(_plain(each, deep - 1) for each in value)
    return not isinstance(value, dict)


def _stream_of(inside: str, query: bytes) -> str | None:
    """The session, or the call, that a GET reads the answers of; None for anything else."""
    if inside == "queue/data":
        return next(iter(parse_qs(query.decode("latin-1")).get("session_hash", ())), None)
    parts = inside.strip("/").split("/")
    return parts[-1] if parts[0] == "call" and len(parts) > 2 else None


async def _answer(send: Any, status: int, detail: str) -> None:
    payload = json.dumps({"detail": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(payload)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})
