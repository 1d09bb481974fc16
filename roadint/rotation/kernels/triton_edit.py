"""A residual stream that a layer leaves in two parts, turned by what is added to one: Triton."""

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from roadint.rotation.kernels.triton import (
    AT_A_TIME,
    FEW_TOKENS,
    alike,
    launch,
    load_pairs,
    sizes,
    store_pairs,
)


@triton.jit
def _edit(
    h,
    residual,
    u,
    v,
    index,
    tokens,
    blocks,
    u_stride,
    HALF: tl.constexpr,
    MIRRORED: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    part = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    entry = tl.load(index + token, mask=token < tokens, other=-1)
    acts = entry >= 0
    row = token.to(tl.int64) * 2 * blocks
    rotation = entry.to(tl.int64) * u_stride
    first, second = load_pairs(h, row, acts, part, blocks, HALF, TOKENS, BLOCKS)
    p, q = first.to(tl.float32), second.to(tl.float32)
    first, second = load_pairs(residual, row, acts, part, blocks, HALF, TOKENS, BLOCKS)
    a, b = p + first.to(tl.float32), q + second.to(tl.float32)
    x, y = load_pairs(u, rotation, acts, part, blocks, 1, TOKENS, BLOCKS)
    c, d = x * a - y * b, x * b + y * a
    if MIRRORED:
        x, y = load_pairs(v, rotation, acts, part, blocks, 1, TOKENS, BLOCKS)
        c, d = c + x * a + y * b, d + y * a - x * b
    # A block that is not turned gets exactly nothing.
    store_pairs(h, p + (c - a), q + (d - b), row, acts, part, blocks, HALF, TOKENS, BLOCKS)


def edit(
    h: Float[Tensor, "tokens width"],
    residual: Float[Tensor, "tokens width"],
    u: Float[Tensor, "rotations blocks 2"],
    v: Float[Tensor, "rotations blocks 2"] | None,
    index: Int[Tensor, " tokens"],
    group: int,
) -> None:
    """Rotate `h + residual` by what is added to `h`, in place and in one launch.

    Args:
        h: What a layer added last, contiguous. Tokens whose index is negative are not even read.
        residual: The rest of the hidden states, contiguous.
        u: As in `turn`.
        v: As in `turn`.
        index: The rotation of every token; below 0 for tokens that stay as they are.
        group: The group size of the pairing.
    """
    u, v = alike(u, v)
    tokens, blocks, block = sizes(h)
    at_a_time = 1 if tokens <= FEW_TOKENS else AT_A_TIME
    grid = (triton.cdiv(tokens, at_a_time), triton.cdiv(blocks, block), 1)
    tensors = (h, residual, u, u if v is None else v, index)
    numbers = (tokens, blocks, u.stride(0), group // 2, v is not None, at_a_time, block)
    launch(_edit, grid, (*tensors, *numbers), h.device)
