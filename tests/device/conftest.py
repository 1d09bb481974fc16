"""The device of these tests: it refuses to be mixed with the CPU, as a GPU does."""

from collections.abc import Iterator

import pytest
import torch

from tests.device import helpers
from tests.docs.conftest import tiny

__all__ = ["device", "tiny"]


@pytest.fixture
def device() -> Iterator[torch.device]:
    with helpers.plug() as device:
        yield device
