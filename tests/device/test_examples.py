"""The examples of guides as typed where there is a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.conftest import folder
from tests.docs.pages import ROOT
from tests.docs.test_examples import test_the_examples_run as run

__all__ = ["folder", "tiny"]
GUIDES = ("compose", "adapters", "interchange")


@pytest.fixture
def tiny(tiny: Any, device: torch.device) -> Any:
    """The small model of the examples, on the device."""
    return tiny.to(device)


@pytest.mark.parametrize("guide", GUIDES)
def test_the_examples_run(guide: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(ROOT / "docs" / "guides" / f"{guide}.md", folder, capsys)
