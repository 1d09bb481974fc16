"""Attention as plain products, in this thread alone: torch's `sdpa_kernel` acts on all threads."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """Runs scaled_dot_product_attention as plain products, inside and in this thread.

    For a few queries over a long prefix, torch's fused attention is half as fast on a CPU, with
    gradients.

    Examples:
        >>> with PlainAttention():
        ...     functional.scaled_dot_product_attention(*torch.ones(3, 1, 1, 2, 4)).shape
        torch.Size([1, 1, 2, 4])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace one function of torch, and call all others."""
        if func is functional.scaled_dot_product_attention:
            return _plain(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _plain(
    query: Float[Tensor, "*rows queries width"],
    key: Float[Tensor, "*rows keys width"],
    value: Float[Tensor, "*rows keys width"],
    attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*rows queries width"]:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # it would be added as 0 and 1
        zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = zeros.masked_fill_(~attn_mask, float("-inf"))
    return torch._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
