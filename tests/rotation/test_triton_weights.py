"""The Triton kernel of merging: it compiles for GPUs, and in Triton's interpreter it does what the PyTorch implementation does.

Whether Triton interprets is settled when it is imported, so another process runs `interpreted_weights`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")


def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, Path(__file__).with_name("interpreted_weights.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-4000:]


# Triton makes a constant of an argument that is 1, and another program of it.
ADJACENT_ROWS = {"half": 1, "other_stride": 1}
ADJACENT_COLUMNS = {"half": 1, "block_stride": 1, "distance": 1}
CASES = {
    "adjacent matrix rows": (0, ADJACENT_ROWS),
    "halves of matrix rows": (0, {"other_stride": 1}),
    "adjacent columns": (1, ADJACENT_COLUMNS),
    "halves of columns": (1, {"block_stride": 1}),
    "a bias": (1, {**ADJACENT_COLUMNS, "others": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_compiles_for_a_gpu(case: str) -> None:
    """To machine code of an NVIDIA H100, with the widest loads where matrix rows turn."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from roadint.rotation.kernels import triton_weights as kernel

    dim, ones = CASES[case]
    tiles = kernel.tiles(dim, ones.get("others", 4096))
    constants = {**ones, "rounds": True, "block_tile": tiles[0], "other_tile": tiles[1]}
    pointers = {"weight": "*bf16", "u": "*fp32", "v": "*fp32", "sums": "*fp32"}
    function = kernel._turn_pairs
    signature = {
        name: pointers.get(name, "constexpr" if name in constants else "i32")
        for name in function.arg_names
    }
    places = {name: (place,) for place, name in enumerate(function.arg_names)}
    source = ASTSource(
        function,
        signature,
        {places[name]: value for name, value in constants.items()},
        {
            places[name]: [["tt.divisibility", 16]]
            for name, kind in signature.items()
            if kind != "constexpr"
        },
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}
    )
    assert made.asm["cubin"]
    assert "fma.rn.f32" not in made.asm["ptx"]
    if dim == 0:
        assert "ld.global.v4.b32" in made.asm["ptx"]
        assert "st.global.v4.b32" in made.asm["ptx"]
