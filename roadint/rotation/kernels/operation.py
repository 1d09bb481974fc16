"""The rotation as one operation of torch: `roadint::turn`, with a gradient, and in place `turn_`.

On a GPU it is one Triton kernel, elsewhere (and where there is no Triton) plain PyTorch. Compiled
code calls the registered operation; or `turn_rows`, which compilers fuse with its neighbours. Eager
code goes to the kernel without torch's dispatcher, which costs more than the kernel on few tokens.
"""

import logging
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from roadint.errors import first_line
from roadint.rotation.kernels import torch as plain
from roadint.rotation.kernels.torch import carries_tangents

logger = logging.getLogger(__name__)

_PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer)


def turn(
    h: Float[Tensor, "*rows width"],
    u: Complex[Tensor, "*rotations blocks"],
    v: Complex[Tensor, "*rotations blocks"] | None = None,
    group: int = 2,
    index: Int[Tensor, " entries"] | None = None,
) -> Float[Tensor, "*rows width"]:
    """Rotate hidden states: `u·z + v·z̄` of their pairs z.

    Args:
        h: The hidden states; an even width, two dims a block.
        u: One rotation for each of some rows: without an index, its leading dimensions broadcast
            against those of `h`; with one, [rotations, blocks].
        v: As `u`; None where it is zero everywhere.
        group: The group size of the pairing, 2 for adjacent dims.
        index: The rotation of every token or, where it is shorter, of as many tokens after another
            as there are for an entry; below 0 for tokens that stay as they are, bit for bit.

    Returns:
        The rotated hidden states, computed in float32 at least, in the dtype of `h`.

    Examples:
        >>> quarter_turn = torch.tensor([[1j, 1j]])
        >>> h = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
        >>> turn(h, quarter_turn)[0]
        tensor([-2.,  1., -4.,  3.])
        >>> turn(h, quarter_turn, index=torch.tensor([-1, 0]))
        tensor([[ 1.,  2.,  3.,  4.],
                [-6.,  5., -8.,  7.]])
    """
    kernel = None if carries_tangents() else kernel_for(h)
    if kernel is not None or index is not None:
        rotations = (u, v) if index is not None else _in_order(h, u, v)
        if rotations is not None:
            return _turn_rows(h.contiguous(), *_real(*rotations), index, group)
    return plain.turn(h, u, v, group).to(h.dtype)


def turn_rows(
    h: Float[Tensor, "*rows width"],
    u: Float[Tensor, "rotations blocks_of_all 2"],
    v: Float[Tensor, "rotations blocks_of_all 2"] | None,
    index: Int[Tensor, " entries"],
    first: int,
    group: int,
) -> Float[Tensor, "*rows width"]:
    """`turn` with some blocks of a table, for graphs, whose compiler fuses it with its neighbours.

    Args:
        h: The hidden states.
        u: Real and imaginary parts of the table's rotations.
        v: As `u`.
        index: As in `turn`.
        first: The first of the blocks, in the table.
        group: The group size of the pairing.
    """
    part = _part(u, first, h)
    of_v = None if v is None else _part(v, first, h)
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return plain.turn_in_graph(h, part, of_v, index, group)
    return _forward(h.contiguous(), part, of_v, index, group)


def kernel_for(h: Tensor) -> ModuleType | None:
    """The Triton kernels, where there are any for hidden states of this device and dtype."""
    if not h.is_cuda or type(h) not in _PLAIN_TENSORS:
        return None
    kernels = _kernels(h.device.index)
    return kernels if kernels is not None and h.dtype in kernels.DTYPES else None


@lru_cache
def _kernels(device: int) -> ModuleType | None:
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 5):
        return None
    try:
        from roadint.rotation.kernels import triton
    except ImportError:
        return None
    try:
        triton.prepare()
    except Exception as error:  # Triton needs a C compiler and Python's headers
        logger.warning(
            "Triton does not run here (%s): rotations run in plain PyTorch, which is slower",
            first_line(error),
        )
        return None
    return triton


def _in_order(h: Tensor, u: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
    """Rotations for as many tokens after another each; None where they broadcast otherwise."""
    blocks = h.shape[-1] // 2
    if u.dtype is not torch.complex64 or u.shape[-1] != blocks:
        return None
    leading, rows = list(u.shape[:-1]), list(h.shape[:-1])
    leading = [1] * (len(rows) - len(leading)) + leading
    while leading and leading[-1] == 1:
        leading.pop()
    if len(leading) > len(rows) or leading != rows[: len(leading)]:
        return None
    return u.reshape(-1, blocks), None if v is None else v.reshape(-1, blocks)


def _real(u: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return tuple(  # type: ignore[return-value]
        None if part is None else torch.view_as_real(part.resolve_conj()) for part in (u, v)
    )


def _turn_rows(h: Tensor, u: Tensor, v: Tensor | None, index: Tensor | None, group: int) -> Tensor:
    tensors = (h, u, v)
    if torch.compiler.is_compiling():
        turned: Tensor = torch.ops.roadint.turn(h, u, v, index, 0, group)
        return turned
    learns = torch.is_grad_enabled() and not carries_tangents()
    if learns and any(t is not None and t.requires_grad for t in tensors):
        turned = _Turn.apply(h, u, v, index, group)  # type: ignore[no-untyped-call]
        return turned
    return _forward(h, u, v, index, group)


def _forward(h: Tensor, u: Tensor, v: Tensor | None, index: Tensor | None, group: int) -> Tensor:
    """The rotated hidden states [*rows, width], contiguous."""
    kernel = None if carries_tangents() else kernel_for(h)
    if kernel is None:
        return plain.turn_indexed(h, u, v, index, group)
    out = torch.empty_like(h)
    kernel.turn(h, u, v, index, group, out)
    return out


def _backward(
    gradient: Tensor,
    h: Tensor,
    u: Tensor,
    v: Tensor | None,
    index: Tensor | None,
    group: int,
    of_h: bool,
    of_u: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of h, u and v, in their shapes; differentiable where they are asked to be."""
    kernel = None if torch.is_grad_enabled() or carries_tangents() else kernel_for(h)
    gradients = plain.gradients_indexed if kernel is None else kernel.gradients
    gradient = gradient.to(h.dtype).contiguous()
    to_h, *to_rotations = gradients(gradient, h, u, v, index, group, of_h=of_h, of_u=of_u)
    if index is not None:  # several entries may take one rotation
        slots = index.clamp(min=0)
        to_rotations = [
            None if part is None else torch.zeros_like(u).index_add_(0, slots, part)
            for part in to_rotations
        ]
    return (to_h, *to_rotations)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor, u: Tensor, v: Tensor | None, index: Tensor | None, group: int) -> Tensor:
        return _forward(h, u, v, index, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        h, u, v, index, ctx.group = inputs
        ctx.save_for_backward(h, u, v, index)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        h, u, v, index = ctx.saved_tensors
        of_h, of_u = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        return (*_backward(outputs[0], h, u, v, index, ctx.group, of_h, of_u), None, None)


# What compiled code calls. `first` and the width of h choose the blocks of a table.


def _part(table: Tensor, first: int, h: Tensor) -> Tensor:
    return table[:, first : first + h.shape[-1] // 2]


@torch.library.custom_op(
    "roadint::turn",
    mutates_args=(),
    schema="(Tensor h, Tensor u, Tensor? v, Tensor? index, int first, int group) -> Tensor",
)
def _registered(
    h: Tensor, u: Tensor, v: Tensor | None, index: Tensor | None, first: int, group: int
) -> Tensor:
    of_v = None if v is None else _part(v, first, h)
    return _forward(h.contiguous(), _part(u, first, h), of_v, index, group)


@torch.library.custom_op(
    "roadint::turn_",
    mutates_args=("h",),
    schema="(Tensor(a!) h, Tensor u, Tensor? v, Tensor? index, int first, int group) -> ()",
)
def _registered_in_place(
    h: Tensor, u: Tensor, v: Tensor | None, index: Tensor | None, first: int, group: int
) -> None:
    part, of_v = _part(u, first, h), None if v is None else _part(v, first, h)
    kernel = kernel_for(h) if h.is_contiguous() else None
    if kernel is None:
        h.copy_(plain.turn_indexed(h, part, of_v, index, group))
    else:
        kernel.turn(h, part, of_v, index, group, h)


@torch.library.custom_op(
    "roadint::turn_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor h, Tensor u, Tensor? v, Tensor? index, int first, int group, "
    "bool of_h, bool of_u) -> Tensor[]",
)
def _registered_backward(
    gradient: Tensor,
    h: Tensor,
    u: Tensor,
    v: Tensor | None,
    index: Tensor | None,
    first: int,
    group: int,
    of_h: bool,
    of_u: bool,
) -> list[Tensor]:
    part, of_v = _part(u, first, h), None if v is None else _part(v, first, h)
    to_h, to_u, to_v = _backward(gradient, h.contiguous(), part, of_v, index, group, of_h, of_u)
    results = [] if to_h is None else [to_h]
    for table, gradient_of_part in ((u, to_u), (v, to_v)):
        if gradient_of_part is not None and table is not None:
            whole = torch.zeros_like(table)
            whole[:, first : first + h.shape[-1] // 2] = gradient_of_part
            results.append(whole)
    return results


@_registered.register_fake
def _(
    h: Tensor, u: Tensor, v: Tensor | None, index: Tensor | None, first: int, group: int
) -> Tensor:
    return torch.empty(h.shape, dtype=h.dtype, device=h.device)


@_registered_backward.register_fake
def _(
    gradient: Tensor,
    h: Tensor,
    u: Tensor,
    v: Tensor | None,
    index: Tensor | None,
    first: int,
    group: int,
    of_h: bool,
    of_u: bool,
) -> list[Tensor]:
    results = [torch.empty(h.shape, dtype=h.dtype, device=h.device)] if of_h else []
    if of_u:
        results += [torch.empty_like(table) for table in (u, v) if table is not None]
    return results


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, u, v, index, ctx.first, ctx.group = inputs
    ctx.save_for_backward(h, u, v, index)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    h, u, v, index = ctx.saved_tensors
    of_h, of_u = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
    results = torch.ops.roadint.turn_backward(
        gradient, h, u, v, index, ctx.first, ctx.group, of_h, of_u
    )
    to_h = results.pop(0) if of_h else None
    to_u = results.pop(0) if of_u else None
    to_v = results.pop(0) if of_u and v is not None else None
    return to_h, to_u, to_v, None, None, None


_registered.register_autograd(_differentiate, setup_context=_keep)
