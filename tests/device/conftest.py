"""The device of these tests: it refuses to be mixed with the CPU, as a GPU does."""

from collections.abc import Iterator

import pytest
import torch

from tests.other_device import other_device


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with other_device(monkeypatch) as device:
        yield device
