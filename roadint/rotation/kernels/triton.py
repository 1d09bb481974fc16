"""The rotation as one Triton kernel, forward and backward: one read and one write of everything.

A program turns some blocks of some tokens. It looks up the rotation of every token by an index, so
a captured CUDA graph serves other compositions when the index changes, and it never touches tokens
whose index is negative. All arithmetic is float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from triton.compiler import CompiledKernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_BLOCKS = 512  # of a program, at most: 2 kB of bfloat16, a few vector loads of every thread
AT_A_TIME = 4  # of a program, where there are many: their rotation is read once
FEW_TOKENS = 1024  # tokens: up to here a program a token fills the device
_CHUNK = 64  # tokens of a backward program, whose gradients of u are summed in registers


@triton.jit
def load_pairs(
    numbers, row, exists, part, blocks, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr
):
    """First and second dims of some blocks of some rows, as [ROWS, BLOCKS]."""
    if HALF == 1:  # adjacent dims: one contiguous read
        dim = part * 2 * BLOCKS + tl.arange(0, 2 * BLOCKS)
        mask = exists[:, None] & (dim < 2 * blocks)[None, :]
        both = tl.load(numbers + row[:, None] + dim[None, :], mask=mask, other=0.0)
        first, second = tl.split(tl.reshape(both, (ROWS, BLOCKS, 2)))
    else:
        block = part * BLOCKS + tl.arange(0, BLOCKS)
        dim = block // HALF * 2 * HALF + block % HALF
        mask = exists[:, None] & (block < blocks)[None, :]
        first = tl.load(numbers + row[:, None] + dim[None, :], mask=mask, other=0.0)
        second = tl.load(numbers + row[:, None] + dim[None, :] + HALF, mask=mask, other=0.0)
    return first, second


@triton.jit
def store_pairs(
    numbers,
    first,
    second,
    row,
    exists,
    part,
    blocks,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Store first and second dims, [ROWS, BLOCKS], where `load_pairs` finds them."""
    kind = numbers.dtype.element_ty
    if HALF == 1:
        dim = part * 2 * BLOCKS + tl.arange(0, 2 * BLOCKS)
        mask = exists[:, None] & (dim < 2 * blocks)[None, :]
        both = tl.reshape(tl.join(first, second), (ROWS, 2 * BLOCKS))
        tl.store(numbers + row[:, None] + dim[None, :], both.to(kind), mask=mask)
    else:
        block = part * BLOCKS + tl.arange(0, BLOCKS)
        dim = block // HALF * 2 * HALF + block % HALF
        mask = exists[:, None] & (block < blocks)[None, :]
        tl.store(numbers + row[:, None] + dim[None, :], first.to(kind), mask=mask)
        tl.store(numbers + row[:, None] + dim[None, :] + HALF, second.to(kind), mask=mask)


@triton.jit
def _turn(
    h,
    out,
    u,
    v,
    index,
    tokens,
    per,
    blocks,
    u_stride,
    HALF: tl.constexpr,
    MIRRORED: tl.constexpr,
    INDEXED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    part = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    exists = token < tokens
    entry = token // per
    if INDEXED:
        entry = tl.load(index + entry, mask=exists, other=-1)
    acts = exists & (entry >= 0)
    row = token.to(tl.int64) * 2 * blocks
    rotation = entry.to(tl.int64) * u_stride
    wanted = exists
    if IN_PLACE:
        wanted = acts  # what is not turned is not even read
    first, second = load_pairs(h, row, wanted, part, blocks, HALF, TOKENS, BLOCKS)
    a, b = first.to(tl.float32), second.to(tl.float32)
    x, y = load_pairs(u, rotation, acts, part, blocks, 1, TOKENS, BLOCKS)
    c, d = x * a - y * b, x * b + y * a
    if MIRRORED:
        x, y = load_pairs(v, rotation, acts, part, blocks, 1, TOKENS, BLOCKS)
        c, d = c + x * a + y * b, d + y * a - x * b
    if INDEXED and not IN_PLACE:
        c, d = tl.where(acts[:, None], c, a), tl.where(acts[:, None], d, b)
    store_pairs(out, c, d, row, wanted, part, blocks, HALF, TOKENS, BLOCKS)


@triton.jit
def _gradients(  # noqa: C901, one kernel
    gradient,
    h,
    u,
    v,
    index,
    to_h,
    to_u,
    to_v,
    per,
    blocks,
    u_stride,
    chunks,
    HALF: tl.constexpr,
    MIRRORED: tl.constexpr,
    INDEXED: tl.constexpr,
    TO_H: tl.constexpr,
    TO_U: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    part, piece = tl.program_id(1), tl.program_id(0)
    entry = piece // chunks
    begin = piece % chunks * CHUNK
    number = entry
    if INDEXED:
        number = tl.load(index + entry)
    one = tl.arange(0, 1)
    acts = (one + number) >= 0
    rotation = (one + number).to(tl.int64) * u_stride
    x, y = load_pairs(u, rotation, acts, part, blocks, 1, 1, BLOCKS)
    if MIRRORED:
        p, q = load_pairs(v, rotation, acts, part, blocks, 1, 1, BLOCKS)
    u_real, u_imaginary = tl.zeros((1, BLOCKS), tl.float32), tl.zeros((1, BLOCKS), tl.float32)
    v_real, v_imaginary = tl.zeros((1, BLOCKS), tl.float32), tl.zeros((1, BLOCKS), tl.float32)
    for start in range(0, CHUNK, TOKENS):
        token = begin + start + tl.arange(0, TOKENS)
        exists = token < per
        row = (entry.to(tl.int64) * per + token) * 2 * blocks
        first, second = load_pairs(gradient, row, exists, part, blocks, HALF, TOKENS, BLOCKS)
        c, d = first.to(tl.float32), second.to(tl.float32)
        if TO_H:
            a, b = x * c + y * d, x * d - y * c
            if MIRRORED:
                a, b = a + p * c + q * d, b + q * c - p * d
            if INDEXED:
                a, b = tl.where(acts[:, None], a, c), tl.where(acts[:, None], b, d)
            store_pairs(to_h, a, b, row, exists, part, blocks, HALF, TOKENS, BLOCKS)
        if TO_U:
            first, second = load_pairs(h, row, exists, part, blocks, HALF, TOKENS, BLOCKS)
            a, b = first.to(tl.float32), second.to(tl.float32)
            u_real += tl.sum(c * a + d * b, 0)[None, :]
            u_imaginary += tl.sum(d * a - c * b, 0)[None, :]
            if MIRRORED:
                v_real += tl.sum(c * a - d * b, 0)[None, :]
                v_imaginary += tl.sum(c * b + d * a, 0)[None, :]
    if TO_U:
        whole = (one + piece).to(tl.int64) * 2 * blocks
        stored = one == 0
        store_pairs(to_u, u_real, u_imaginary, whole, stored, part, blocks, 1, 1, BLOCKS)
        if MIRRORED:
            store_pairs(to_v, v_real, v_imaginary, whole, stored, part, blocks, 1, 1, BLOCKS)


def prepare() -> None:
    """Have Triton compile what it needs of every launch, and raise where it can't."""
    triton.runtime.driver.active.get_current_device()


def turn(
    h: Float[Tensor, "*rows width"],
    u: Float[Tensor, "rotations blocks 2"],
    v: Float[Tensor, "rotations blocks 2"] | None,
    index: Int[Tensor, " entries"] | None,
    group: int,
    out: Float[Tensor, "*rows width"],
) -> None:
    """Write the rotated hidden states into `out`, in one launch.

    Args:
        h: The hidden states, contiguous.
        u: Real and imaginary parts, float32; the last two dimensions are contiguous.
        v: As `u`, with its strides; None where it is zero everywhere.
        index: The rotation of every token, or of as many tokens after another as there are for an
            entry; below 0 for tokens that stay as they are. Without an index the tokens are divided
            among the rotations in order.
        group: The group size of the pairing.
        out: As `h`, or `h` itself.
    """
    Launch(h, u, v, index, group, out)(h, out)


class Launch:
    """A launch of the kernel for hidden states of one shape, dtype and device.

    What does not depend on the numbers is worked out once: a decode launches the kernel for every
    layer and token, and Triton's own search for the compiled kernel costs more than the kernel.

    Args:
        h: Hidden states as those to come.
        u: As in `turn`.
        v: As in `turn`.
        index: As in `turn`.
        group: As in `turn`.
        out: `h` itself where later ones are written over, too.
    """

    def __init__(
        self,
        h: Tensor,
        u: Tensor,
        v: Tensor | None,
        index: Tensor | None,
        group: int,
        out: Tensor,
    ) -> None:
        u, v = alike(u, v)
        tokens, blocks, block = sizes(h)
        per = tokens // max(1, len(u) if index is None else len(index))
        at_a_time = 1 if tokens <= FEW_TOKENS else AT_A_TIME
        self._grid = (triton.cdiv(tokens, at_a_time), triton.cdiv(blocks, block), 1)
        self._rest = (
            *(u, u if v is None else v, u if index is None else index),
            *(tokens, per, blocks, u.stride(0)),
            *(group // 2, v is not None, index is not None, out is h, at_a_time, block),
        )
        self._compiled: Any = None

    def __call__(self, h: Tensor, out: Tensor) -> None:
        """Write the rotated `h` into `out`; both contiguous."""
        # The compiled kernel takes aligned memory for granted.
        aligned = (h.data_ptr() | out.data_ptr()) % 16 == 0
        known = aligned and self._compiled is not None
        if known and h.device.index == torch.cuda.current_device():
            self._compiled(h, out, *self._rest)
            return
        compiled = launch(_turn, self._grid, (h, out, *self._rest), h.device)
        if aligned and isinstance(compiled, CompiledKernel):
            self._compiled = compiled[self._grid]


def gradients(
    gradient: Float[Tensor, "*rows width"],
    h: Float[Tensor, "*rows width"],
    u: Float[Tensor, "rotations blocks 2"],
    v: Float[Tensor, "rotations blocks 2"] | None,
    index: Int[Tensor, " entries"] | None,
    group: int,
    *,
    of_h: bool,
    of_u: bool,
) -> tuple[
    Shaped[Tensor, "*rows width"] | None,
    Float[Tensor, "entries blocks 2"] | None,
    Float[Tensor, "entries blocks 2"] | None,
]:
    """The gradients of `turn`, in one launch; those of u and v for every entry of the index.

    Args:
        gradient: The gradient of the rotated hidden states, contiguous, in the dtype of `h`.
        h: As in `turn`.
        u: As in `turn`.
        v: As in `turn`.
        index: As in `turn`.
        group: As in `turn`.
        of_h: Whether the gradient of h is wanted.
        of_u: Whether those of u and v are wanted.

    Returns:
        The gradients of h, u and v; None for what is not wanted. Entries without a rotation get
        zeros.
    """
    u, v = alike(u, v)
    tokens, blocks, block = sizes(h)
    entries = len(u) if index is None else len(index)
    per = tokens // max(1, entries)
    at_a_time = min(AT_A_TIME, triton.next_power_of_2(max(1, per)))
    chunk = max(at_a_time, min(_CHUNK, triton.next_power_of_2(max(1, per))))
    chunks = max(1, triton.cdiv(per, chunk))
    block = min(block, _BLOCKS // 2)  # registers hold the sums, too
    to_h = torch.empty_like(h) if of_h else h
    to_u, to_v = (
        h.new_empty(entries * chunks if wanted else 0, blocks, 2, dtype=torch.float32)
        for wanted in (of_u, of_u and v is not None)
    )
    numbers = (per, blocks, u.stride(0), chunks)
    constants = (group // 2, v is not None, index is not None, of_h, of_u, chunk, at_a_time, block)
    tensors = (u, u if v is None else v, u if index is None else index, to_h, to_u, to_v)
    grid = (entries * chunks, triton.cdiv(blocks, block), 1)
    launch(_gradients, grid, (gradient, h, *tensors, *numbers, *constants), h.device)
    return (
        to_h if of_h else None,
        _sum(to_u, index, entries) if of_u else None,
        _sum(to_v, index, entries) if of_u and v is not None else None,
    )


def _sum(
    parts: Float[Tensor, "pieces blocks 2"], index: Tensor | None, entries: int
) -> Float[Tensor, "entries blocks 2"]:
    """The sums of the pieces of every entry; 0 for entries without a rotation."""
    parts = parts.view(entries, -1, *parts.shape[1:])
    sums = parts.sum(1) if parts.shape[1] > 1 else parts[:, 0]
    # Not a product with 0: NaN in an unturned token must not reach a rotation.
    return sums if index is None else sums.masked_fill(index[:, None, None] < 0, 0)


def alike(u: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rotations as the kernels read them: blocks side by side, and v laid out as u.

    They know one distance from rotation to rotation, and would read other numbers in silence.
    """
    if u.stride()[1:] == (2, 1) and (v is None or v.stride() == u.stride()):
        return u, v
    return u.contiguous(), None if v is None else v.contiguous()


def sizes(h: Tensor) -> tuple[int, int, int]:
    """Tokens, blocks, and the blocks of a program."""
    blocks = h.shape[-1] // 2
    return h.numel() // h.shape[-1], blocks, min(_BLOCKS, triton.next_power_of_2(blocks))


def launch(kernel: Any, grid: tuple[int, int, int], arguments: Any, device: torch.device) -> Any:
    """Start a kernel on a device; nothing for an empty grid."""
    if not (grid[0] and grid[1]):
        return None
    if device.type != "cuda":  # Triton's interpreter
        return kernel[grid](*arguments)
    with torch.cuda.device(device):
        # No fused products and sums: it rounds as a CPU does.
        return kernel[grid](*arguments, enable_fp_fusion=False)
