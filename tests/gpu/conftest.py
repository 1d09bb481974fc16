"""A GPU for the tests of tests/device and these; without one they fail."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.device import helpers
from tests.device.conftest import device, tiny

__all__ = ["device", "tiny"]


@contextmanager
def gpu() -> Iterator[torch.device]:
    yield torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.fail("there is no GPU: these tests run features on one (make unit needs none)")
    monkeypatch.setattr(helpers, "plug", gpu)
    # By hand: pytest 9.2 undoes a patch of these by deleting, which they refuse.
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in settings]
    for each in settings:
        each.allow_tf32 = False  # float32 is float32, as on the CPU
    yield
    for each, allowed in zip(settings, before, strict=True):
        each.allow_tf32 = allowed
