"""Weights turned in place by one Triton kernel: every number is read once and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # pairs that a program turns


def turn_weight_(
    weight: Tensor, u: Tensor, v: Tensor | None, group: int, dim: int
) -> Tensor | None:
    """As roadint.rotation.kernels.weights.turn_weight_, for float32, bfloat16 and float16."""
    blocks, others = weight.shape[dim] // 2, weight.shape[1 - dim]
    block_tile, other_tile = tiles(dim, others)
    programs = triton.cdiv(blocks, block_tile) * triton.cdiv(others, other_tile)
    rounds = weight.dtype is not torch.float32
    sums = weight.new_empty(2 if rounds else 0, programs, dtype=torch.float32)
    # A kernel starts on the current device, whatever its arguments are on.
    with torch.cuda.device_of(weight):
        _turn_pairs[(programs,)](
            weight,
            torch.view_as_real(u.resolve_conj().contiguous()),
            None if v is None else torch.view_as_real(v.resolve_conj().contiguous()),
            sums,
            blocks,
            others,
            group // 2,
            weight.stride(dim),
            weight.stride(1 - dim),
            group // 2 * weight.stride(dim),
            rounds=rounds,
            block_tile=block_tile,
            other_tile=other_tile,
            enable_fp_fusion=False,  # rounds as a CPU does, whatever Triton's default is
        )
    return sums.sum(1) if rounds else None


def tiles(dim: int, others: int) -> tuple[int, int]:
    """How many blocks a program turns, and at how many places along the other dim.

    Numbers that lie side by side in memory are read together: along matrix rows, or along blocks.
    """
    if dim == 0:
        return 1, _TILE
    return (_TILE, 1) if others == 1 else (_TILE // 16, 16)


@triton.jit
def _turn_pairs(
    weight,
    u,
    v,
    sums,
    blocks,
    others,
    half,
    block_stride,
    other_stride,
    distance,
    rounds: tl.constexpr,
    block_tile: tl.constexpr,
    other_tile: tl.constexpr,
):
    """Turn a tile: some blocks, and some places along the other dim of the matrix."""
    program = tl.program_id(0)
    tiles = tl.cdiv(others, other_tile)
    block = program // tiles * block_tile + tl.arange(0, block_tile)
    other = program % tiles * other_tile + tl.arange(0, other_tile)
    held = block < blocks
    u_real = tl.load(u + 2 * block, held, 0.0)
    u_imag = tl.load(u + 2 * block + 1, held, 0.0)
    r11, r12, r21, r22 = u_real, -u_imag, u_imag, u_real
    if v is not None:
        v_real = tl.load(v + 2 * block, held, 0.0)
        v_imag = tl.load(v + 2 * block + 1, held, 0.0)
        r11, r12 = u_real + v_real, v_imag - u_imag
        r21, r22 = u_imag + v_imag, u_real - v_real
    # Matrices may have more than 2³¹ numbers.
    first = (block // half * 2 * half + block % half).to(tl.int64) * block_stride
    place = weight + other.to(tl.int64)[:, None] * other_stride + first[None, :]
    inside = (other < others)[:, None] & held[None, :]
    a = tl.load(place, inside, 0.0).to(tl.float32)
    b = tl.load(place + distance, inside, 0.0).to(tl.float32)
    new_a = a * r11[None, :] + b * r12[None, :]
    new_b = b * r22[None, :] + a * r21[None, :]
    stored_a, stored_b = new_a.to(weight.dtype.element_ty), new_b.to(weight.dtype.element_ty)
    tl.store(place, stored_a, inside)
    tl.store(place + distance, stored_b, inside)
    if rounds:
        change_a, change_b = new_a - a, new_b - b
        error_a, error_b = new_a - stored_a.to(tl.float32), new_b - stored_b.to(tl.float32)
        tl.store(sums + program, tl.sum(change_a * change_a + change_b * change_b))
        tl.store(sums + tl.num_programs(0) + program, tl.sum(error_a * error_a + error_b * error_b))
