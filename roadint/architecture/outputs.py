"""What a layer returns: hidden states, alone or as the first of a tuple or list."""

from typing import Any

from jaxtyping import Float
from torch import Tensor


def hidden_of(output: Any) -> Float[Tensor, "rows columns width"]:
    """The hidden states in a layer's output."""
    hidden: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return hidden


def with_hidden(output: Any, hidden: Float[Tensor, "rows columns width"]) -> Any:
    """A layer's output with other hidden states in it."""
    if isinstance(output, (tuple, list)):
        return type(output)([hidden, *output[1:]])
    return hidden
