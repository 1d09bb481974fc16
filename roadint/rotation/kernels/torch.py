"""The rotation as one operation in plain PyTorch.

A pair of dims is a complex number z. A real 2×2 matrix on a pair is `u·z + v·z̄`, and v is 0 where
both matrix rows rotate and scale alike, as in RoAd1. One complex product replaces two real
products, a swap and a sum, which would all read and write everything: the operation costs about as
much as a copy, and keeps one copy of the input for the gradient.
"""

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


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

    Example:
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


class _TurnWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, u: Tensor, v: Tensor | None, group: int) -> Tensor:
        return _turn(h, u, v, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        h, u, v, ctx.group = inputs
        ctx.save_for_backward(h, u, v)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        h, u, v = ctx.saved_tensors
        (gradient,) = outputs
        to_h = to_u = to_v = None
        if ctx.needs_input_grad[0]:
            to_h = _turn(gradient, u.conj(), v, ctx.group).sum_to_size(h.shape).to(h.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            z, g = pairs(h, ctx.group, u), pairs(gradient, ctx.group, u)
            to_u = (g * z.conj()).sum_to_size(u.shape)
            to_v = None if v is None else (g * z).sum_to_size(v.shape)
        return to_h, to_u, to_v, None


def _turn(h: Tensor, u: Tensor, v: Tensor | None, group: int) -> Tensor:
    z = pairs(h, group, u)
    if group != 2 or carries_tangents():
        return dims(z * u if v is None else torch.addcmul(z * u, z.conj(), v), group)
    shape = torch.broadcast_shapes(z.shape, u.shape)  # type: ignore[no-untyped-call]
    # A new tensor, not a view: models write into the output of a layer.
    turned = torch.empty(*shape[:-1], 2 * shape[-1], dtype=z.real.dtype, device=z.device)
    out = torch.view_as_complex(turned.view(*shape, 2))
    torch.mul(z, u, out=out)
    if v is not None:
        out.addcmul_(z.conj(), v)
    return turned


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
