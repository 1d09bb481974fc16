"""Kernels compile for a GPU without one, in a process in which Triton does not interpret them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernels_compile() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, Path(__file__).with_name("compiled_kernels.py")],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-4000:]
