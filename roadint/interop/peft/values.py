"""The order of θ and α of a layer in PEFT, as a vector of numbers.

The order of RoAd1 is by block, of RoAd2 by output channel, of RoAd4 by group, with the entries on
the diagonals first.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from roadint.rotation.rotation import Variant, parameter_shape


def as_peft(
    values: Float[Tensor, " blocks *entries"], variant: Variant, group: int
) -> Float[Tensor, " numbers"]:
    """θ or α of a layer in PEFT's order.

    Args:
        values: The values by block; with 2 entries a block for road_2, 2 × 2 for road_4.
        variant: "road_1", "road_2" or "road_4".
        group: PEFT's group_size, in dims.

    Examples:
        >>> as_peft(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), "road_2", group=4).tolist()
        [0.0, 2.0, 1.0, 3.0]
    """
    if variant == "road_1":
        return values
    if variant == "road_2":
        return _by_channel(values, group).flatten()
    diagonal = values.diagonal(dim1=1, dim2=2)
    across = torch.stack([values[:, 0, 1], values[:, 1, 0]], -1)
    return torch.cat([_by_channel(diagonal, group), _by_channel(across, group)], dim=1).flatten()


def from_peft(
    values: Float[Tensor, " numbers"], variant: Variant, group: int
) -> Float[Tensor, " blocks *entries"]:
    """θ or α of a layer from PEFT's order: the inverse of `as_peft`."""
    if variant == "road_1":
        return values
    if variant == "road_2":
        return _by_block(values.reshape(-1, group))
    diagonal, across = (_by_block(half) for half in values.reshape(-1, 2, group).unbind(1))
    entries = torch.stack([diagonal[:, 0], across[:, 0], across[:, 1], diagonal[:, 1]], -1)
    return entries.reshape(parameter_shape(variant, len(entries)))


def _by_channel(entries: Float[Tensor, "blocks 2"], group: int) -> Float[Tensor, "groups group"]:
    """The numbers of the first matrix row of a group's blocks, then those of the second."""
    return entries.reshape(-1, group // 2, 2).transpose(1, 2).flatten(1)


def _by_block(channels: Float[Tensor, "groups group"]) -> Float[Tensor, "blocks 2"]:
    return channels.reshape(len(channels), 2, -1).transpose(1, 2).reshape(-1, 2)
