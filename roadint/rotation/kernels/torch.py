"""The rotation as one operation: about what a copy costs, and one copy of the input kept for the gradient.

Each pair of dims is a complex number z. A real 2×2 matrix on a pair is `u·z + v·z̄`, and v is 0 where both rows rotate and scale
alike, as in RoAd1: one complex product, instead of two real ones, a swap and a sum, each of which would read and write everything.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


def turn(h: Tensor, u: Tensor, v: Tensor | None, group: int = 2) -> Tensor:
    """`u·z + v·z̄` of the pairs z of h [..., width], in float32 at least. u, v: complex, of [..., width / 2]; None is 0."""
    if (
        torch.is_grad_enabled()
        and not carries_tangents()
        and any(each is not None and each.requires_grad for each in (h, u, v))
    ):
        turned: Tensor = _Turn.apply(h, u, v, group)  # type: ignore[no-untyped-call]
        return turned
    return _turn(h, u, v, group)


def carries_tangents() -> bool:
    """Whether values may carry derivatives of forward mode (torch.func.jvp), without asking for gradients."""
    return forward_ad._current_level >= 0


def turn_(h: Tensor, u: Tensor, scratch: Tensor | None = None) -> Tensor:
    """`u·z` over adjacent pairs, written over h (contiguous), without gradients: the quickest way.

    h: [rows, …, width]. scratch: to work in where h is no float32, float32 of h's shape or of fewer rows, which then take turns.
    """
    if scratch is None:
        h.view(torch.complex64).mul_(u)
        return h
    few = len(scratch)
    if few == len(h):
        scratch.copy_(h).view(torch.complex64).mul_(u)
        return h.copy_(scratch)
    for place in range(0, len(h), few):
        part = h[place : place + few]
        turn_(part, u if len(u) == 1 else u[place : place + few], scratch[: len(part)])
    return h


class _Turn(torch.autograd.Function):
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
    # Memory of its own, and no view of some: models write into a layer's output.
    turned = torch.empty(*shape[:-1], 2 * shape[-1], dtype=z.real.dtype, device=z.device)
    out = torch.view_as_complex(turned.view(*shape, 2))
    torch.mul(z, u, out=out)
    if v is not None:
        out.addcmul_(z.conj(), v)
    return turned


def pairs(h: Tensor, group: int, like: Tensor | None = None) -> Tensor:
    """The pairs of h [..., width] as complex numbers [..., width / 2]; of float32 parts, or float64 where h or `like` has such."""
    if h.dtype is not torch.float64:
        h = h.double() if like is not None and like.dtype is torch.complex128 else h.float()
    if group == 2:
        return torch.view_as_complex(h.contiguous().view(*h.shape[:-1], -1, 2))
    first, second = h.reshape(*h.shape[:-1], -1, 2, group // 2).unbind(-2)
    return torch.complex(first, second).flatten(-2)


def dims(z: Tensor, group: int) -> Tensor:
    """Back from pairs [..., width / 2] to dims [..., width]."""
    if group == 2:
        return torch.view_as_real(z.resolve_conj()).flatten(-2)
    z = z.reshape(*z.shape[:-1], -1, group // 2)
    whole = torch.empty(
        *z.shape[:-2], 2 * z.shape[-2] * z.shape[-1], dtype=z.real.dtype, device=z.device
    )
    parts = whole.view(*z.shape[:-1], 2, group // 2)
    parts[..., 0, :], parts[..., 1, :] = z.real, z.imag
    return whole
