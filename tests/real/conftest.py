"""The offline models: Gemma 3 270M (base) and SmolLM2-135M-Instruct, loaded once."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import roadint


@pytest.fixture(autouse=True, scope="session")
def _all_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gemma() -> tuple[Any, Any]:
    return roadint.load("gemma-3-270m")


@pytest.fixture(scope="session")
def smollm() -> tuple[Any, Any]:
    return roadint.load("smollm2-135m")
