"""The checkpoints that a server serves, as clients of it see and change them."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roadint.checkpoint.sources import CheckpointSources
from roadint.engines.vllm import control
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.subspace import labelled

_MAX_CHARACTERS = 300  # of a checkpoint's name
_TYPES = {400: "BadRequestError", 403: "ForbiddenError", 404: "NotFoundError", 409: "ConflictError"}


class Refusal(Exception):
    """What a client is told in place of an answer.

    Args:
        status: The status of HTTP.
        message: One line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def as_json(self) -> dict[str, Any]:
        """In the form of OpenAI's errors."""
        kind = _TYPES[self.status]
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.status}}


class ServedCheckpoints:
    """The checkpoints of one engine.

    Args:
        engine_client: vLLM's way to the engine.
        folder: Where clients may load checkpoints from, beside the public hub; None where they may
            not load any.
    """

    def __init__(self, engine_client: Any, folder: str | None) -> None:
        self._engine = engine_client
        self._sources = None if folder is None else CheckpointSources(Path(folder).resolve())
        self._changing = asyncio.Lock()  # so that what is checked still holds when it is done

    def names(self) -> list[str]:
        """The names that a composition may use; none where the engine was started without any."""
        try:
            served = control.served(self._engine)
        except RoadError:
            return []
        return [name for label, told in served.items() for name in _names(label, told)]

    def check(self, arguments: Mapping[str, Any]) -> None:
        """As roadint.engines.vllm.control.check."""
        control.check(self._engine, arguments)

    async def listing(self) -> dict[str, Any]:
        """Labels, names and fingerprints; no paths of the server's machine."""
        try:
            served = control.served(self._engine)
        except RoadError as error:
            raise Refusal(404, str(error)) from None
        data = [_about(label, told) for label, told in served.items()]
        return {"object": "list", "data": data, "names": self.names()}

    async def load(self, request: Any) -> dict[str, Any]:
        """Load a checkpoint.

        Args:
            request: What was sent: {"label": …, "path": …}, where the path is one in the folder, or
                a hub id.

        Returns:
            Its label, names and fingerprint.

        Raises:
            Refusal: 400 for what is no such request, or a checkpoint that does not fit the model;
                403 where clients may not load any; 404 for a path that is not allowed or holds
                none; 409 where the label is taken.
        """
        if self._sources is None:
            raise Refusal(
                403, "this server loads no checkpoints over HTTP: start it with a folder for them"
            )
        label, name = _read_request(request)
        try:
            source = self._sources.source_of(name)
            path = await asyncio.to_thread(self._sources.path_of, source)
        except RoadError as error:
            raise Refusal(404, str(error)) from None
        hidden = {str(path): self._sources.name_of(source)}
        hidden[str(self._sources.folder)] = self._sources.folder.name
        async with self._changing:
            try:
                if label in control.served(self._engine):
                    taken = f"label {quoted(label)} is taken: unload it, or choose another"
                    raise Refusal(409, taken)
                await control.load(self._engine, label, str(path))
            except RoadError as error:
                raise Refusal(400, _without(hidden, str(error))) from None
            return _about(label, control.served(self._engine)[label])

    async def unload(self, label: str) -> dict[str, Any]:
        """Unload a checkpoint; requests that run with it are answered.

        Args:
            label: Its label.

        Returns:
            The label, and that it is unloaded.

        Raises:
            Refusal: 404 where there is none of that label, 400 where it can't go.
        """
        async with self._changing:
            try:
                served = control.served(self._engine)
                if label not in served:
                    known = listing(served)
                    raise Refusal(404, f"no checkpoint {quoted(label)}: the labels are {known}")
                await control.unload(self._engine, label)
            except RoadError as error:
                raise Refusal(400, _without({}, str(error))) from None
        return {"label": label, "object": "roadint.checkpoint", "deleted": True}


def _about(label: str, told: dict[str, Any]) -> dict[str, Any]:
    names, fingerprint = _names(label, told), told["fingerprint"]
    return {
        "object": "roadint.checkpoint",
        "label": label,
        "names": names,
        "fingerprint": fingerprint,
    }


def _names(label: str, told: dict[str, Any]) -> list[str]:
    return [labelled(name, label) for name in told["names"]]


def _read_request(request: Any) -> tuple[str, str]:
    expected = 'expected {"label": "a", "path": "german-english"}'
    if not isinstance(request, dict):
        raise Refusal(400, f"the request is no JSON object: {expected}")
    values = []
    for field in ("label", "path"):
        value = request.get(field)
        if not isinstance(value, str) or not value.strip() or len(value) > _MAX_CHARACTERS:
            raise Refusal(
                400, f"{field} {quoted(value)} is no text of 1 to {_MAX_CHARACTERS}: {expected}"
            )
        values.append(value)
    unknown = [name for name in request if name not in ("label", "path")]
    if unknown:
        raise Refusal(400, f"unknown field {quoted(unknown[0])}: {expected}")
    return values[0], values[1]


def _without(hidden: dict[str, str], message: str) -> str:
    """A message without the paths of this machine."""
    for path, name in hidden.items():
        message = message.replace(path, name)
    return " ".join(message.split())
