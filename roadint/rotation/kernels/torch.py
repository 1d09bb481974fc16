"""The rotation as one operation in plain PyTorch.

A pair of dims is a complex number z. A real 2×2 matrix on a pair is `u·z + v·z̄`, and v is 0 where
both matrix rows rotate and scale alike, as in RoAd1. One complex product replaces two real
products, a swap and a sum, which would all read and write everything: the operation costs about as
much as a copy, and keeps one copy of the input for the gradient.
"""

from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.autograd import forward_ad


def turn(
    h: Float[Tensor, "*rows width"],
    u: Complex[Tensor, "*rows blocks"],
    v: Complex[Tensor, "*rows blocks"] | None,
    group: int = 2,
) -> Float[Tensor, "*rows width"]:
    """Rotate hidden states: `u·z + v·z̄` of their pairs z.

    Args:
        h: The hidden states; an even width, two dims a block.
        u: Leading dimensions broadcast against those of `h`.
        v: As `u`; None where it is zero everywhere.
        group: The group size of the pairing, 2 for adjacent dims.

    Returns:
        The rotated hidden states, in float32 at least.

    Examples:
        >>> quarter_turn = torch.tensor([1j, 1j])
        >>> turn(torch.tensor([1.0, 2.0, 3.0, 4.0]), quarter_turn, None)
        tensor([-2.,  1., -4.,  3.])
    """
    if (
        torch.is_grad_enabled()
        and not carries_tangents()
        and any(tensor is not None and tensor.requires_grad for tensor in (h, u, v))
    ):
        turned: Tensor = _TurnWithGradient.apply(h, u, v, group)  # type: ignore[no-untyped-call]
        return turned
    return _turn(h, u, v, group)


def carries_tangents() -> bool:
    """Whether values may carry derivatives of forward mode (torch.func.jvp)."""
    return forward_ad._current_level >= 0


def turn_(
    h: Float[Tensor, "rows *columns width"],
    u: Complex[Tensor, "rows *columns blocks"],
    scratch: Float[Tensor, "some *columns width"] | None = None,
) -> Float[Tensor, "rows *columns width"]:
    """Rotate adjacent pairs in place, without gradients: `u·z`, the quickest way.

    Args:
        h: The hidden states, contiguous; they are written over.
        u: One entry a row, or one for all rows.
        scratch: Float32 memory to work in, where `h` is not float32. It may have fewer rows than
            `h`, which are then rotated in parts.

    Returns:
        `h` itself.
    """
    if scratch is None:
        h.view(torch.complex64).mul_(u)
        return h
    few = len(scratch)
    if few == len(h):
        scratch.copy_(h).view(torch.complex64).mul_(u)
        return h.copy_(scratch)
    for start in range(0, len(h), few):
        part = h[start : start + few]
        turn_(part, u if len(u) == 1 else u[start : start + few], scratch[: len(part)])
    return h


def turn_indexed(
    h: Float[Tensor, "*rows width"],
    u: Float[Tensor, "rotations blocks 2"],
    v: Float[Tensor, "rotations blocks 2"] | None,
    index: Int[Tensor, " entries"] | None,
    group: int,
) -> Float[Tensor, "*rows width"]:
    """Rotate hidden states by rotations of a table.

    Args:
        h: The hidden states.
        u: Real and imaginary parts.
        v: As `u`.
        index: The rotation of every token or, where it is shorter, of as many tokens after another
            as there are for an entry; below 0 for tokens that stay as they are. Without an index
            the tokens are divided among the rotations in order.
        group: The group size of the pairing.

    Returns:
        The rotated hidden states, in the dtype of `h`; a new tensor.
    """
    entries = len(u) if index is None else len(index)
    tokens = h.reshape(entries, -1, h.shape[-1])
    turned = turn(tokens, *_taken(u, v, index), group).to(h.dtype)
    if index is not None:
        turned = torch.where(index[:, None, None] >= 0, turned, tokens)
    return turned.view(h.shape)


def turn_in_graph(
    h: Float[Tensor, "*rows width"],
    u: Float[Tensor, "rotations blocks 2"],
    v: Float[Tensor, "rotations blocks 2"] | None,
    index: Int[Tensor, " entries"],
    group: int,
) -> Float[Tensor, "*rows width"]:
    """`turn_indexed` in real numbers, for compilers: they fuse it with what is before and after.

    An operation of its own would be one more kernel, with a read and a write, at every layer.

    Args:
        h: As in `turn_indexed`.
        u: As in `turn_indexed`.
        v: As in `turn_indexed`.
        index: As in `turn_indexed`.
        group: As in `turn_indexed`.
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    tokens = h.reshape(len(index), -1, h.shape[-1]).to(wide)
    grouped = tokens.reshape(*tokens.shape[:-1], -1, 2, group // 2)
    a, b = grouped[..., 0, :].flatten(-2), grouped[..., 1, :].flatten(-2)
    slot = index.clamp(min=0)
    x, y = u[slot, None, :, 0], u[slot, None, :, 1]
    c, d = x * a - y * b, x * b + y * a
    if v is not None:
        x, y = v[slot, None, :, 0], v[slot, None, :, 1]
        c, d = c + x * a + y * b, d + y * a - x * b
    acts = (index >= 0)[:, None, None]
    c, d = torch.where(acts, c, a), torch.where(acts, d, b)
    halves = [part.reshape(*part.shape[:-1], -1, group // 2) for part in (c, d)]
    turned = torch.stack(halves, dim=-2)
    return turned.to(h.dtype).reshape(h.shape)


def gradients_indexed(
    gradient: Float[Tensor, "*rows width"],
    h: Float[Tensor, "*rows width"],
    u: Float[Tensor, "rotations blocks 2"],
    v: Float[Tensor, "rotations blocks 2"] | None,
    index: Int[Tensor, " entries"] | None,
    group: int,
    *,
    of_h: bool,
    of_u: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `turn_indexed`: those of u and v for every entry of the index.

    Args:
        gradient: The gradient of the rotated hidden states.
        h: As in `turn_indexed`.
        u: As in `turn_indexed`.
        v: As in `turn_indexed`.
        index: As in `turn_indexed`.
        group: As in `turn_indexed`.
        of_h: Whether the gradient of h is wanted.
        of_u: Whether those of u and v are wanted.

    Returns:
        The gradients of h, u and v; None for what is not wanted.
    """
    entries = len(u) if index is None else len(index)
    shape = (entries, -1, h.shape[-1])
    of_u_taken, of_v_taken = _taken(u, v, index)
    to_h = to_u = to_v = None
    if of_h:
        to_h = turn_indexed(gradient, _conjugate(u), v, index, group)
    if of_u:
        z = pairs(h.reshape(shape), group, of_u_taken)
        g = pairs(gradient.reshape(shape), group, of_u_taken)
        acts = None if index is None else (index >= 0)[:, None]
        to_u = _sum_where(acts, g * z.conj_physical())
        to_v = None if of_v_taken is None else _sum_where(acts, g * z)
    return to_h, to_u, to_v


def _taken(u: Tensor, v: Tensor | None, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The complex numbers of every entry, to broadcast against [entries, tokens, blocks]."""
    parts = []
    for part in (u, v):
        if part is not None and index is not None:
            part = part.index_select(0, index.clamp(min=0))
        parts.append(None if part is None else torch.view_as_complex(part)[:, None])
    return parts[0], parts[1]  # type: ignore[return-value]


def _conjugate(u: Float[Tensor, "rotations blocks 2"]) -> Tensor:
    return torch.stack((u[..., 0], -u[..., 1]), dim=-1)


def _sum_where(
    acts: Tensor | None, products: Complex[Tensor, "entries tokens blocks"]
) -> Float[Tensor, "entries blocks 2"]:
    """The sums over the tokens, as real and imaginary parts; 0 for entries that do not act."""
    sums = products.sum(1)
    if acts is not None:
        sums = torch.where(acts, sums, torch.zeros_like(sums))
    return torch.view_as_real(sums)


class _TurnWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, u: Tensor, v: Tensor | None, group: int) -> Tensor:
        return _turn(h, u, v, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        h, u, v, ctx.group = inputs
        ctx.save_for_backward(h, u, v)

    @staticmethod
    def backward(
        ctx: Any, *outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        # Differentiable itself, for those who ask for second derivatives.
        h, u, v = ctx.saved_tensors
        (gradient,) = outputs
        to_h = to_u = to_v = None
        if ctx.needs_input_grad[0]:
            to_h = turn(gradient, u.conj(), v, ctx.group).sum_to_size(h.shape).to(h.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            z, g = pairs(h, ctx.group, u), pairs(gradient, ctx.group, u)
            to_u = (g * z.conj()).sum_to_size(u.shape)
            to_v = None if v is None else (g * z).sum_to_size(v.shape)
        return to_h, to_u, to_v, None


def _turn(h: Tensor, u: Tensor, v: Tensor | None, group: int) -> Tensor:
    z = pairs(h, group, u)
    if group != 2 or carries_tangents():
        return dims(z * u if v is None else torch.addcmul(z * u, z.conj_physical(), v), group)
    shape = torch.broadcast_shapes(z.shape, u.shape)  # type: ignore[no-untyped-call]
    # A new tensor, not a view: models write into the output of a layer.
    turned = torch.empty(*shape[:-1], 2 * shape[-1], dtype=z.real.dtype, device=z.device)
    out = torch.view_as_complex(turned.view(*shape, 2))
    torch.mul(z, u, out=out)
    if v is not None:
        # Not a lazy view: where torch compiles, an operation may lose its mark.
        out.addcmul_(z.conj_physical(), v)
    return turned


def entries(
    u: Complex[Tensor, "*rows blocks"], v: Complex[Tensor, "*rows blocks"] | None
) -> tuple[
    Float[Tensor, "*rows blocks"],
    Float[Tensor, "*rows blocks"],
    Float[Tensor, "*rows blocks"],
    Float[Tensor, "*rows blocks"],
]:
    """R11, R12, R21 and R22 of every block of `u·z + v·z̄`; v None is 0."""
    if v is None:
        return u.real, -u.imag, u.imag, u.real
    return u.real + v.real, v.imag - u.imag, u.imag + v.imag, u.real - v.real


def pairs(
    h: Float[Tensor, "*rows width"], group: int, like: Complex[Tensor, "..."] | None = None
) -> Complex[Tensor, "*rows blocks"]:
    """The pairs of dims as complex numbers.

    Args:
        h: The hidden states.
        group: The group size of the pairing.
        like: The numbers that pairs are multiplied by.

    Returns:
        The pairs in complex64; in complex128 where `h` or `like` has double precision.
    """
    if h.dtype is not torch.float64:
        h = h.double() if like is not None and like.dtype is torch.complex128 else h.float()
    if group == 2:
        return torch.view_as_complex(h.contiguous().view(*h.shape[:-1], -1, 2))
    first, second = h.reshape(*h.shape[:-1], -1, 2, group // 2).unbind(-2)
    return torch.complex(first, second).flatten(-2)


def dims(z: Complex[Tensor, "*rows blocks"], group: int) -> Float[Tensor, "*rows width"]:
    """The inverse of `pairs`."""
    if group == 2:
        return torch.view_as_real(z.resolve_conj()).flatten(-2)
    z = z.reshape(*z.shape[:-1], -1, group // 2)
    whole = torch.empty(
        *z.shape[:-2], 2 * z.shape[-2] * z.shape[-1], dtype=z.real.dtype, device=z.device
    )
    parts = whole.view(*z.shape[:-1], 2, group // 2)
    parts[..., 0, :], parts[..., 1, :] = z.real, z.imag
    return whole
