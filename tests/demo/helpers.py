"""What the tests of the app share: hostile text, and a hub that cannot be reached."""

from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

HOSTILE = "<img src=x onerror=alert(1)>"


def no_network(monkeypatch: pytest.MonkeyPatch, size: int | None = None) -> None:
    """The hub cannot be asked about a repository; or has one of this size."""

    class Api:
        def __init__(self, token: Any = None) -> None:
            assert token is False

        def model_info(self, *_: Any, **__: Any) -> Any:
            if size is None:
                raise OSError("no connection")
            return SimpleNamespace(
                siblings=[SimpleNamespace(rfilename="road.safetensors", size=size)]
            )

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
