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


@pytest.mark.parametrize("dim", [0, 1])
def test_compiles_for_a_gpu(dim: int) -> None:
    """To machine code of an NVIDIA H100, with the widest loads where matrix rows turn."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from roadint.rotation.kernels import triton_weights as kernel

    pointers = {"weight": "*bf16", "u": "*fp32", "v": "*fp32", "sums": "*fp32"}
    numbers = dict.fromkeys(("blocks", "others"), "i32")
    tiles = kernel.COLUMNS if dim else kernel.ROWS
    constants = {"half": 1, "rounds": True, "block_tile": tiles[0], "other_tile": tiles[1]}
    if dim:
        constants |= {"block_stride": 1, "distance": 1}
        numbers["other_stride"] = "i32"
    else:
        constants["other_stride"] = 1
        numbers |= {"block_stride": "i32", "distance": "i32"}
    function = kernel._turn_pairs
    signature = {
        name: {**pointers, **numbers}.get(name, "constexpr") for name in function.arg_names
    }
    source = ASTSource(
        function,
        signature,
        {(function.arg_names.index(name),): value for name, value in constants.items()},
        {
            (function.arg_names.index(name),): [["tt.divisibility", 16]]
            for name in (*pointers, *numbers)
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
