"""A client of a server that `roadint serve` started: its checkpoints, and answers as they grow."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from roadint.errors import RoadError, quoted

_CHECKPOINTS = "/v1/roadint/checkpoints"
_LOADING = 120.0  # seconds that the loading of a checkpoint may take
_HERE = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Piece:
    """What an answer grows by.

    Args:
        text: The text.
        tokens: How many tokens the answer has now.
    """

    text: str
    tokens: int


class ServerClient:
    """The requests that the app sends.

    Args:
        url: The server's address, with or without /v1.
        api_key: Its token, where it asks for one.

    Raises:
        RoadError: where the address is none.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RoadError(f"--server {quoted(url)}: expected one such as http://127.0.0.1:8000")
        self._settings: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "trust_env": parts.hostname not in _HERE,  # no proxy stands before this machine
            "timeout": httpx.Timeout(_LOADING, connect=10),
            "verify": httpx.create_ssl_context(),  # once: it reads many certificates
        }

    def model(self) -> str:
        """The name of the model that the server serves."""
        listed = self._ask("GET", "/v1/models")["data"]
        return str(listed[0]["id"])

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """The server's checkpoints: label → "names" and "fingerprint"."""
        return {told["label"]: told for told in self._ask("GET", _CHECKPOINTS)["data"]}

    def load(self, label: str, path: str) -> dict[str, Any]:
        """Let the server load a checkpoint; returns what it tells of it."""
        return self._ask("POST", _CHECKPOINTS, {"label": label, "path": path})

    def unload(self, label: str) -> None:
        """Let the server forget a checkpoint."""
        self._ask("DELETE", f"{_CHECKPOINTS}/{quote(label, safe='')}")

    async def answer(self, route: str, request: Mapping[str, Any]) -> AsyncIterator[Piece]:
        """Ask for an answer.

        Args:
            route: "completions" or "chat/completions".
            request: What OpenAI's API takes, without what streaming needs.

        Yields:
            The answer's pieces.

        Raises:
            RoadError: where it is refused, or the connection breaks.
        """
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {**request, "stream": True, "stream_options": options}
        try:
            async with (
                httpx.AsyncClient(**self._settings) as client,
                client.stream("POST", f"{self.url}/v1/{route}", json=body) as response,
            ):
                if response.status_code != 200:
                    await response.aread()
                    raise self._refusal(response)
                async for line in response.aiter_lines():
                    piece = _piece(line)
                    if piece is not None:
                        yield piece
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            with httpx.Client(**self._settings) as client:
                response = client.request(method, f"{self.url}{path}", json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            answer = response.json()
        except ValueError:
            raise RoadError(f"{self.url}{path} answers with something else than JSON") from None
        if not isinstance(answer, dict):
            raise RoadError(f"{self.url}{path} answers with something else than an object")
        return answer

    def _refusal(self, response: httpx.Response) -> RoadError:
        if response.status_code == 401:
            return RoadError(f"the server at {self.url} asks for a token: give it as --api-key")
        try:
            told = response.json()["error"]
            message = told["message"] if isinstance(told, dict) else str(told)
        except (ValueError, KeyError, TypeError):
            path = response.request.url.path
            return RoadError(
                f"the server at {self.url} answers {response.status_code} to {path}: expected one "
                "that roadint serve started"
            )
        return RoadError(" ".join(message.split()))

    def _unreachable(self, error: Exception) -> RoadError:
        kind = type(error).__name__
        return RoadError(f"the server at {self.url} does not answer ({kind}): is it running?")


def _piece(line: str) -> Piece | None:
    """What a line of a stream adds; None where it adds nothing."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return None
    event = json.loads(data)
    if "error" in event:
        told = event["error"]
        raise RoadError(str(told["message"] if isinstance(told, dict) else told))
    text = ""
    for choice in event.get("choices", ()):
        text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return Piece(text, (event.get("usage") or {}).get("completion_tokens", 0))
