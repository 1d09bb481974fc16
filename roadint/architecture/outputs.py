"""What a layer returns: hidden states or, in some architectures, a tuple that begins with them."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

LayerOutput = Tensor | Sequence[Any]


def hidden_of(output: LayerOutput) -> Float[Tensor, "rows columns width"]:
    """The hidden states in what a layer returned.

    Args:
        output: The output of the layer.

    Returns:
        The hidden states; `output` itself where it is no tuple and no list.

    Examples:
        >>> import torch
        >>> hidden_of((torch.ones(1), None))
        tensor([1.])
    """
    hidden: Any = output[0] if isinstance(output, (tuple, list)) else output
    return hidden  # type: ignore[no-any-return]


def with_hidden(output: LayerOutput, hidden: Float[Tensor, "rows columns width"]) -> LayerOutput:
    """What a layer returned, with other hidden states.

    Args:
        output: The output of the layer.
        hidden: The new hidden states.

    Returns:
        An output of the same form, with its other entries.

    Examples:
        >>> import torch
        >>> with_hidden((torch.ones(1), "rest"), torch.zeros(1))
        (tensor([0.]), 'rest')
    """
    if isinstance(output, (tuple, list)):
        return type(output)([hidden, *output[1:]])
    return hidden
