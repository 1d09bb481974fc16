"""Weights changed in place: pairs of dims of a matrix turned, or a product added.

Arithmetic is in float32 (float64 for weights in float64). Nothing waits for the device: what
rounding to the weights' dtype loses comes back as two sums on it.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from roadint.rotation.kernels.operation import kernel_for
from roadint.rotation.kernels.torch import entries, turn

# Numbers that are worked on at a time: on a CPU they stay in its cache, elsewhere launches are few.
_CHUNK_ON_CPU, _CHUNK = 1 << 20, 1 << 26

Sums = Float[Tensor, "2"]
"""‖exact − before‖² and ‖exact − stored‖², where weights are stored in a narrower dtype."""


def turn_weight_(
    weight: Float[Tensor, "rows columns"],
    u: Complex[Tensor, " blocks"],
    v: Complex[Tensor, " blocks"] | None,
    group: int,
    dim: int,
) -> Sums | None:
    """Turn the pairs of a matrix in place: `u·z + v·z̄`.

    Args:
        weight: The matrix.
        u: One entry a block.
        v: As `u`; None where it is zero everywhere.
        group: The group size of the pairing, 2 for adjacent dims.
        dim: What is paired: 0 for matrix rows, 1 for columns.

    Returns:
        What rounding lost; None where nothing is rounded.
    """
    if kernel_for(weight) is not None:
        from roadint.rotation.kernels import triton_weights

        return triton_weights.turn_weight_(weight, u, v, group, dim)
    return (_turn_columns if dim else _turn_rows)(weight, u, v, group)


def add_product_(
    weight: Float[Tensor, "rows columns"],
    left: Float[Tensor, "rows rank"],
    right: Float[Tensor, "rank columns"],
    strength: float,
) -> Sums | None:
    """Add `strength · left @ right` to a matrix in place.

    Args:
        weight: The matrix.
        left: The first factor, in the dtype of the arithmetic.
        right: The second one.
        strength: A number to multiply by.

    Returns:
        What rounding lost; None where nothing is rounded.
    """
    few, rounding = max(1, _chunk(weight) // weight.shape[1]), _Rounding(weight)
    left, right = left.to(rounding.exact), right.to(rounding.exact)
    for rows, factor in zip(torch.split(weight, few), torch.split(left, few), strict=True):
        exact = torch.addmm(rows.to(rounding.exact), factor, right, alpha=strength)
        rounding.store(rows, exact)
    return rounding.sums()


def _chunk(weight: Tensor) -> int:
    return _CHUNK_ON_CPU if weight.device.type == "cpu" else _CHUNK


def _turn_rows(weight: Tensor, u: Tensor, v: Tensor | None, group: int) -> Sums | None:
    """A few pairs of matrix rows at a time."""
    half = group // 2
    grouped = weight.view(-1, 2, half, weight.shape[1])
    of_blocks = [entry.view(-1, half, 1) for entry in entries(u, v)]
    pairs = max(1, _chunk(weight) // (2 * weight.shape[1]))
    few, many = min(half, pairs), max(1, pairs // half)
    rounding = _Rounding(weight)
    # One buffer for all chunks: allocating costs as much as the work.
    scratch = torch.empty(
        *(min(many, len(grouped)), few, weight.shape[1]),
        dtype=rounding.exact,
        device=weight.device,
    )
    for group_index in range(0, len(grouped), many):
        for start in range(0, half, few):
            groups = slice(group_index, group_index + many)
            members = slice(start, start + few)
            first, second = grouped[groups, :, members].unbind(1)
            r11, r12, r21, r22 = (entry[groups, members] for entry in of_blocks)
            # The weights themselves where they have the dtype of the arithmetic.
            a, b = first.to(rounding.exact), second.to(rounding.exact)
            from_a = torch.mul(a, r21, out=scratch[: len(a), : a.shape[1]])
            a.mul_(r11).addcmul_(b, r12)
            b.mul_(r22).add_(from_a)
            rounding.store(first, a)
            rounding.store(second, b)
    return rounding.sums()


def _turn_columns(weight: Tensor, u: Tensor, v: Tensor | None, group: int) -> Sums | None:
    """A few matrix rows at a time."""
    rounding = _Rounding(weight)
    for rows in torch.split(weight, max(1, _chunk(weight) // weight.shape[1])):
        rounding.store(rows, turn(rows, u, v, group))
    return rounding.sums()


class _Rounding:
    """Stores new values, and measures what rounding to the dtype of the weight loses."""

    def __init__(self, weight: Tensor) -> None:
        self.exact = torch.promote_types(weight.dtype, torch.float32)
        self._sums: list[Tensor] = []

    def store(self, stored: Tensor, new: Tensor) -> None:
        """Write the exact `new` over `stored`."""
        if stored.dtype == new.dtype:
            if stored.data_ptr() != new.data_ptr():
                stored.copy_(new)
            return
        difference = stored.to(new.dtype).sub_(new)
        self._sums.append(difference.square_().sum())
        stored.copy_(new)
        self._sums.append(difference.copy_(stored).sub_(new).square_().sum())

    def sums(self) -> Sums | None:
        """What rounding lost in all."""
        return torch.stack(self._sums).view(-1, 2).sum(0) if self._sums else None
