"""The rotation as one operation: about what a copy costs, and one copy of the input kept for the gradient.

Adjacent pairs are complex numbers. A real 2×2 matrix on a pair is `z → u·z + v·z̄`, and v is 0 where both rows rotate and scale
alike, as in RoAd1: one complex product, instead of two real ones, a swap and a sum, each of which would read and write everything.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def swap(h: Tensor, group: int = 2) -> Tensor:
    """A quarter turn of every pair, `(a, b) → (−b, a)`. Shape [..., width], in and out."""
    first, second = h.reshape(*h.shape[:-1], -1, 2, group // 2).unbind(-2)
    return torch.stack((-second, first), dim=-2).flatten(-3)


def turn(h: Tensor, direct: Tensor, cross: Tensor, group: int) -> Tensor:
    """`direct ⊙ h + cross ⊙ swap(h)`, in the wider dtype of h and the vectors. Shapes broadcast to [..., width]."""
    if torch.is_grad_enabled() and any(each.requires_grad for each in (h, direct, cross)):
        turned: Tensor = _Turn.apply(h, direct, cross, group)  # type: ignore[no-untyped-call]
        return turned
    return _turn(h, direct, cross, group)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, direct: Tensor, cross: Tensor, group: int) -> Tensor:
        return _turn(h, direct, cross, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        h, direct, cross, ctx.group = inputs
        ctx.save_for_backward(h, direct, cross)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        h, direct, cross = ctx.saved_tensors
        (gradient,) = outputs
        to_h = to_direct = to_cross = None
        if ctx.needs_input_grad[0]:
            # The transpose of a swap is its negative, and a swap exchanges the members of a pair.
            to_h = _turn(gradient, direct, -_exchanged(cross, ctx.group), ctx.group).sum_to_size(h.shape).to(h.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            to_direct, to_cross = _gradients(h, gradient, direct.shape, cross.shape, ctx.group)
        return to_h, to_direct, to_cross, None


def _turn(h: Tensor, direct: Tensor, cross: Tensor, group: int) -> Tensor:
    if group != 2:
        return direct * h + cross * swap(h, group)
    d, c = (each.reshape(*each.shape[:-1], -1, 2) for each in (direct, cross))
    u = torch.complex(d.mean(-1), c.mean(-1))
    v = torch.complex((d[..., 0] - d[..., 1]) / 2, (c[..., 1] - c[..., 0]) / 2)
    z = _complex(h, direct)
    # On a CPU looking costs nothing; elsewhere it would make the host wait.
    alike = v.device.type == "cpu" and not bool(v.any())
    return torch.view_as_real(z * u if alike else torch.addcmul(z * u, z.conj(), v)).flatten(-2)


def _gradients(h: Tensor, gradient: Tensor, direct: torch.Size, cross: torch.Size, group: int) -> tuple[Tensor, Tensor]:
    """Of `direct` and of `cross`: the sums of g ⊙ h and of g ⊙ swap(h) over what was broadcast."""
    if group != 2:
        return (gradient * h).sum_to_size(direct), (gradient * swap(h, group)).sum_to_size(cross)
    z, g = _complex(h, gradient), _complex(gradient, h)
    half = (*direct[:-1], direct[-1] // 2)
    same, mirrored = (z.conj() * g).sum_to_size(half), (z * g).sum_to_size(half)
    one, other = (same + mirrored) / 2, (same - mirrored) / 2  # (a·g0, a·g1) and (b·g1, −b·g0)
    to_direct = torch.stack([one.real, other.real], dim=-1).flatten(-2)
    return to_direct, torch.stack([other.imag, one.imag], dim=-1).flatten(-2).reshape(cross)


def _complex(pairs: Tensor, like: Tensor) -> Tensor:
    """Adjacent pairs as complex numbers [..., width / 2], of float32 parts at least."""
    wide = torch.promote_types(torch.promote_types(pairs.dtype, like.dtype), torch.float32)
    return torch.view_as_complex(pairs.to(wide).reshape(*pairs.shape[:-1], -1, 2).contiguous())


def _exchanged(vector: Tensor, group: int) -> Tensor:
    """The members of each pair in each other's place."""
    return vector.reshape(*vector.shape[:-1], -1, 2, group // 2).flip(-2).flatten(-3)
