"""The examples of the documentation as typed where there is a GPU."""

from typing import Any

import pytest
import torch

from tests.docs.conftest import folder
from tests.docs.test_examples import test_the_examples_run

__all__ = ["folder", "test_the_examples_run", "tiny"]


@pytest.fixture
def tiny(tiny: Any, device: torch.device) -> Any:
    """The small model of the examples, on the device."""
    return tiny.to(device)
