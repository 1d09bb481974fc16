"""Compositions in the names of models, for clients that can set nothing else of a request.

`"model": "gemma-3-270m:german + english"` is the model `gemma-3-270m` through that composition.
"""

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from types import NoneType
from typing import Any

from roadint.errors import RoadError, listing, quoted

# Routes that hand vllm_xargs on to the engine, and those that answer nothing but take a model.
_ANSWERING = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/chat/completions/batch",
    "/invocations",
)
_RENDERING = tuple(f"{path}/render" for path in _ANSWERING[:4])
_COUNTING = ("/v1/messages/count_tokens", "/tokenize", "/detokenize")

# An ASGI application and what it is called with.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class ModelNames:
    """An ASGI middleware that moves a composition from the model's name to where the engine reads.

    It also refuses requests whose composition vLLM would drop without a word: those with beam
    search, and those of routes that don't hand it on. And what is not understood: in an answer that
    is streamed vLLM reads it when it has said 200 already.

    Args:
        app: vLLM's application.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its composition where the engine reads it."""
        if not _holds_json(scope):
            await self._app(scope, receive, send)
            return
        messages = await _whole(receive)
        body = b"".join(message.get("body", b"") for message in messages)
        try:
            resolved = _resolved_body(_path(scope), body, scope["app"].state)
        except RoadError as error:
            await _refuse(send, str(error))
            return
        if resolved is not None:
            messages = [{"type": "http.request", "body": resolved, "more_body": False}]
            scope = {**scope, "headers": _with_length(scope["headers"], len(resolved))}
        waiting = iter(messages)

        async def receive_again() -> Message:
            return next(waiting, None) or await receive()

        await self._app(scope, receive_again, send)


def split_name(name: str, served: Collection[str]) -> tuple[str, str | None]:
    """Split the name of a model with a composition.

    Args:
        name: What a request says.
        served: The names that the server knows. One that has a colon itself stays whole.

    Returns:
        The model's name and the composition; None where there is none, or the model is unknown.

    Examples:
        >>> split_name("gemma:german + english", ["gemma"])
        ('gemma', 'german + english')
        >>> split_name("gemma:2b:german", ["gemma", "gemma:2b"])
        ('gemma:2b', 'german')
        >>> split_name("gemma:2b", ["gemma", "gemma:2b"])
        ('gemma:2b', None)
    """
    if name not in served:
        for model in sorted(served, key=len, reverse=True):
            rest = name[len(model) :].lstrip() if name.startswith(model) else ""
            if rest.startswith(":"):
                return model, rest[1:].strip()
    return name, None


def resolve(path: str, request: Mapping[str, Any], served: Collection[str]) -> Mapping[str, Any]:
    """Put the composition of a model's name into `vllm_xargs`.

    Args:
        path: The route.
        request: What was sent to it, JSON.
        served: The names that the server knows.

    Returns:
        The request as vLLM reads it; the same object where nothing changes.

    Raises:
        RoadError: where name and `vllm_xargs` say different compositions, and where vLLM would
            drop the composition.
    """
    model, arguments = request.get("model"), request.get("vllm_xargs")
    is_named = isinstance(model, str) and path in (*_ANSWERING, *_RENDERING, *_COUNTING)
    name, named = split_name(str(model), served) if is_named else ("", None)
    if path in _COUNTING:
        return request if named is None else {**request, "model": name}
    if not isinstance(arguments, (dict, NoneType)):
        return request  # vLLM refuses it
    given = (arguments or {}).get("roadint")
    if named is not None:
        if given not in (None, named):
            raise RoadError(
                f"model {quoted(model)} and vllm_xargs.roadint {quoted(given)} name two "
                "compositions: expected one of them"
            )
        given, arguments = named, {**(arguments or {}), "roadint": named}
        request = {**request, "model": name, "vllm_xargs": arguments}
    if given not in (None, "none"):
        _check_handed_on(path, request, given)
    return request


def _check_handed_on(path: str, request: Mapping[str, Any], composition: Any) -> None:
    if path not in (*_ANSWERING, *_RENDERING):
        raise RoadError(
            f"{path} takes no composition, vllm_xargs.roadint {quoted(composition)} would not act: "
            f"expected one of {listing(_ANSWERING)}"
        )
    if request.get("use_beam_search"):
        raise RoadError(
            f"beam search drops the composition {quoted(composition)}: leave out use_beam_search, "
            "or the composition"
        )


def _resolved_body(path: str, body: bytes, state: Any) -> bytes | None:
    """The body with its composition where the engine reads it; None where it stays as it is."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None  # vLLM says what is wrong with it
    if not isinstance(request, dict):
        return None
    resolved = resolve(path, request, _served(state))
    arguments = resolved.get("vllm_xargs")
    if path in _ANSWERING and isinstance(arguments, dict) and hasattr(state, "roadint"):
        state.roadint.check(arguments)
    return None if resolved is request else json.dumps(resolved).encode()


def _served(state: Any) -> set[str]:
    """The names of the model, and of the LoRA modules that are loaded at this moment."""
    models = state.openai_serving_models
    return {model.name for model in models.base_model_paths} | set(models.lora_requests)


def _holds_json(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    kinds = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
    return any(kind.lower().split(b";")[0].strip() == b"application/json" for kind in kinds)


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


async def _whole(receive: Receive) -> list[Message]:
    """The messages of a request's body; the last one may say that the client is gone."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def _with_length(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    others = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*others, (b"content-length", str(length).encode())]


async def _refuse(send: Send, message: str) -> None:
    """Answer 400, in OpenAI's form."""
    error = {"message": message, "type": "BadRequestError", "param": "vllm_xargs", "code": 400}
    payload = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(payload)).encode()),
    ]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": payload})
