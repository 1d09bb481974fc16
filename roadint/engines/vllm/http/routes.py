"""Routes of the server: which checkpoints it serves; loading and unloading them while it runs.

They lie under /v1, where the server's bearer token guards them. vLLM adds them, and compositions in
the names of models, where VLLM_PLUGINS names roadint.
"""

from argparse import Namespace
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

from roadint.engines.vllm.http.checkpoints import Refusal, ServedCheckpoints
from roadint.engines.vllm.http.model_names import ModelNames

if TYPE_CHECKING:
    from fastapi import FastAPI

_CHECKPOINTS = "/v1/roadint/checkpoints"


class RoadRoutes:
    """What vLLM asks of a plugin of its API server."""

    name = "roadint"
    required_tasks = ("generate",)

    def attach_router(self, app: "FastAPI") -> None:
        """Add the routes and the middleware; authentication, which comes later, lies around both.

        Args:
            app: vLLM's application, with its own routes.
        """
        from fastapi import Request
        from fastapi.responses import JSONResponse

        async def answer(result: Awaitable[Mapping[str, Any]]) -> JSONResponse:
            try:
                return JSONResponse(await result)
            except Refusal as refusal:
                return JSONResponse(refusal.as_json(), status_code=refusal.status)

        @app.get(_CHECKPOINTS)
        async def show_checkpoints(request: Request) -> JSONResponse:
            return await answer(_served(request).listing())

        @app.post(_CHECKPOINTS)
        async def load_checkpoint(request: Request) -> JSONResponse:
            return await answer(_served(request).load(await _json(request)))

        @app.delete(f"{_CHECKPOINTS}/{{label}}")
        async def unload_checkpoint(label: str, request: Request) -> JSONResponse:
            return await answer(_served(request).unload(label))

        @app.get("/v1/models")  # in place of vLLM's own
        async def show_models(request: Request) -> JSONResponse:
            models = await request.app.state.openai_serving_models.show_available_models()
            return JSONResponse(with_compositions(models.model_dump(), _served(request).names()))

        app.add_middleware(ModelNames)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Keep what the routes need.

        Args:
            engine_client: vLLM's way to the engine.
            state: Of the application.
            args: Of the server.
        """
        config = engine_client.vllm_config.additional_config
        folder = config.get("roadint", {}).get("folder")
        state.roadint = ServedCheckpoints(engine_client, folder)


def with_compositions(models: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The list of models with each through each name alone, for clients that choose from a menu.

    Args:
        models: vLLM's list.
        names: What a composition may name.

    Returns:
        The list with "MODEL:NAME" after the models; LoRA modules have none.

    Examples:
        >>> models = {"data": [{"id": "gemma", "parent": None}]}
        >>> [card["id"] for card in with_compositions(models, ["german"])["data"]]
        ['gemma', 'gemma:german']
    """
    cards = models["data"]
    bases = [card for card in cards if card["parent"] is None]
    further = [
        {**card, "id": f"{card['id']}:{name}", "parent": card["id"]}
        for card in bases
        for name in names
    ]
    return {**models, "data": [*cards, *further]}


def _served(request: Any) -> ServedCheckpoints:
    served: ServedCheckpoints = request.app.state.roadint
    return served


async def _json(request: Any) -> Any:
    try:
        return await request.json()
    except (ValueError, RecursionError):
        return None  # refused as no object
