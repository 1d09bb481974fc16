"""What test_compiled_kernels runs where Triton compiles: all kernels, to machine code of an NVIDIA H100."""

from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from roadint.rotation.kernels import triton as kernels
from roadint.rotation.kernels import triton_weights

H100 = GPUTarget("cuda", 90, 32)


def made(function: Any, types: dict[str, str], constants: dict[str, Any], aligned: set[str]) -> Any:
    """The machine code, for arguments of these types; other arguments are constants."""
    places = {name: (place,) for place, name in enumerate(function.arg_names)}
    source = ASTSource(
        function,
        {name: types.get(name, "constexpr") for name in places},
        {places[name]: value for name, value in constants.items()},
        {places[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=H100, options={"enable_fp_fusion": False})


@pytest.mark.parametrize("half", [1, 128])
def test_turn(half: int) -> None:
    """Hidden states of adjacent pairs move 16 bytes at a time."""
    types = {"h": "*bf16", "out": "*bf16", "u": "*fp32", "v": "*fp32", "index": "*i64"}
    types |= dict.fromkeys(("tokens", "per", "blocks", "u_stride"), "i32")
    constants: dict[str, Any] = {"HALF": half, "MIRRORED": half > 1, "INDEXED": True}
    constants |= {"IN_PLACE": True, "TOKENS": 1, "BLOCKS": 512}
    aligned = {name for name in types if types[name][0] == "*"} | {"blocks", "u_stride"}
    built = made(kernels._turn, types, constants, aligned)
    assert built.asm["cubin"]
    if half == 1:
        assert "ld.global.v4.b32" in built.asm["ptx"]
        assert "st.global.v4.b32" in built.asm["ptx"]


@pytest.mark.parametrize("mirrored", [False, True])
def test_gradients(mirrored: bool) -> None:
    names = ("gradient", "h", "u", "v", "index", "to_h", "to_u", "to_v")
    kinds = ("*bf16", "*bf16", "*fp32", "*fp32", "*i64", "*bf16", "*fp32", "*fp32")
    types = dict(zip(names, kinds, strict=True))
    types |= dict.fromkeys(("per", "blocks", "u_stride", "chunks"), "i32")
    constants: dict[str, Any] = {"HALF": 1, "MIRRORED": mirrored, "INDEXED": True, "TO_H": True}
    constants |= {"TO_U": True, "CHUNK": 64, "TOKENS": 4, "BLOCKS": 256}
    aligned = {name for name in types if types[name][0] == "*"} | {"blocks", "u_stride"}
    assert made(kernels._gradients, types, constants, aligned).asm["cubin"]


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
def test_weights(case: str) -> None:
    """To machine code of an NVIDIA H100, with the widest loads where matrix rows turn."""
    dim, ones = CASES[case]
    tiles = triton_weights.tiles(dim, ones.get("others", 4096))
    constants = {**ones, "rounds": True, "block_tile": tiles[0], "other_tile": tiles[1]}
    pointers = {"weight": "*bf16", "u": "*fp32", "v": "*fp32", "sums": "*fp32"}
    function = triton_weights._turn_pairs
    types = {
        name: pointers.get(name, "i32") for name in function.arg_names if name not in constants
    }
    built = made(function, types, constants, set(types))
    assert built.asm["cubin"]
    assert "fma.rn.f32" not in built.asm["ptx"]
    if dim == 0:
        assert "ld.global.v4.b32" in built.asm["ptx"]
        assert "st.global.v4.b32" in built.asm["ptx"]
