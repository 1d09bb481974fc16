"""Parameters that stay float32, and that may exist before their shape is known.

An optimizer holds parameters by identity: one that was made before the model told the width, or before values were loaded, has to
train what acts afterwards.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy


class KeepsPrecision(nn.Module):
    """`.to()`, `.half()` and `.bfloat16()` of a surrounding model move the parameters but never change their dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]


class Waiting(UninitializedParameter):
    """torch's own, which can also be frozen and take part in a model's `.bfloat16()`."""

    _allowed_methods = (
        *UninitializedParameter._allowed_methods,  # type: ignore[attr-defined]
        torch.Tensor.requires_grad_,
        torch.Tensor.bfloat16,
    )


def wait_for(module: nn.Module, names: Iterable[str]) -> None:
    """Register a parameter without a shape at each dotted name, with modules that hold nothing else between."""
    for name in names:
        owner, leaf = _owner(name)
        holder = module
        for part in owner.split(".") if owner else ():
            if not isinstance(getattr(holder, part, None), nn.Module):
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        waiting: Any = Waiting(dtype=torch.float32)  # type: ignore[call-arg]
        holder.register_parameter(leaf, waiting)


def keep_objects(module: nn.Module, before: Mapping[str, nn.Parameter]) -> None:
    """Put the parameters `before` back in the place of those of their names, with these ones' values and shapes."""
    for name, kept in before.items():
        owner, leaf = _owner(name)
        holder = dict(module.named_modules()).get(owner)
        made = None if holder is None else holder._parameters.get(leaf)
        if holder is None or made is None or made is kept:
            continue
        device = torch.device("cpu") if kept.device.type == "meta" else kept.device
        if is_lazy(kept):
            kept.materialize(made.shape, device=device, dtype=made.dtype)
        elif kept.shape != made.shape:
            kept.grad = None
        kept.data = made.data.to(device)
        holder._parameters[leaf] = kept


def _owner(name: str) -> tuple[str, str]:
    owner, _, leaf = name.rpartition(".")
    return owner, leaf
