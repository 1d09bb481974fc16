"""A service on a tiny model."""

from pathlib import Path
from typing import Any

import pytest

from roadint.demo import service as service_module
from roadint.demo.service import Service
from tests.helpers import build, trained


@pytest.fixture
def small(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service on a tiny model; its folder, tmp_path / "runs", holds `second`."""
    road = trained(build("llama")).eval()
    road.save_pretrained(tmp_path / "first")
    road.save_pretrained(tmp_path / "runs" / "second")
    monkeypatch.setattr(service_module, "open_checkpoint", lambda *_: (road, tokenizer))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    service = Service(str(tmp_path / "first"), folder=tmp_path / "runs")
    assert service.wait(60), service.status
    return service
