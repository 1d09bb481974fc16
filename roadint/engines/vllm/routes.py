"""Routes of the server: which checkpoints it serves; loading and unloading them while it runs.

They lie under /v1, where the server's bearer token guards them. vLLM adds them, and compositions in
the names of models, where VLLM_PLUGINS names roadint.
"""

import asyncio
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roadint.checkpoint.sources import CheckpointSources
from roadint.engines.vllm import control
from roadint.engines.vllm.model_names import ModelNames
from roadint.errors import RoadError, check_known, listing, quoted

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

_CHECKPOINTS = "/v1/roadint/checkpoints"
_MAX_CHARACTERS = 300  # of a checkpoint's name


class RoadRoutes:
    """What vLLM asks of a plugin of its API server."""

    name = "roadint"
    required_tasks = ("generate",)

    def attach_router(self, app: "FastAPI") -> None:
        """Add the routes and the middleware, before those of the server, which lie around them."""
        app.get(_CHECKPOINTS)(show_checkpoints)
        app.post(_CHECKPOINTS)(load_checkpoint)
        app.delete(f"{_CHECKPOINTS}/{{label}}")(unload_checkpoint)
        app.get("/v1/models")(show_models)  # in place of vLLM's own
        app.add_middleware(ModelNames)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Take the folder from which checkpoints may be loaded from the engine's configuration."""
        config = engine_client.vllm_config.additional_config.get("roadint", {})
        folder = config.get("folder")
        state.roadint_sources = folder and CheckpointSources(Path(folder).resolve())
        state.roadint_loading = asyncio.Lock()
