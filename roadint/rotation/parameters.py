"""Parameters that stay float32, and that may exist before their shape is known.

An optimizer holds parameters by identity: it may be made before the width is known, or before
values are loaded, and still has to train the right objects.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy


class KeepsPrecision(nn.Module):
    """A module whose parameters move with the model around it, but never change their dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]


class Waiting(UninitializedParameter):
    """A parameter without a shape, which a model may freeze or convert to bfloat16 meanwhile."""

    _allowed_methods = (
        *UninitializedParameter._allowed_methods,  # type: ignore[attr-defined]
        torch.Tensor.requires_grad_,
        torch.Tensor.bfloat16,
    )


def register_waiting(module: nn.Module, names: Iterable[str]) -> None:
    """Register parameters whose shape is not known yet.

    Args:
        module: The module.
        names: The dotted names; missing modules between are made.
    """
    for name in names:
        parent, leaf = _parent_and_leaf(name)
        holder = module
        for part in parent.split(".") if parent else ():
            if not isinstance(getattr(holder, part, None), nn.Module):
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        waiting: Any = Waiting(dtype=torch.float32)  # type: ignore[call-arg]
        holder.register_parameter(leaf, waiting)


def keep_objects(module: nn.Module, before: Mapping[str, nn.Parameter]) -> None:
    """Restore earlier parameter objects, with the values and shapes of the current ones.

    Args:
        module: The module.
        before: The earlier objects by dotted names; names that do not exist any more are ignored.
    """
    for name, earlier in before.items():
        parent, leaf = _parent_and_leaf(name)
        holder = dict(module.named_modules()).get(parent)
        current = None if holder is None else holder._parameters.get(leaf)
        if holder is None or current is None or current is earlier:
            continue
        device = torch.device("cpu") if earlier.device.type == "meta" else earlier.device
        if is_lazy(earlier):
            earlier.materialize(current.shape, device=device, dtype=current.dtype)
        elif earlier.shape != current.shape:
            earlier.grad = None
        earlier.data = current.data.to(device)
        holder._parameters[leaf] = earlier


def _parent_and_leaf(name: str) -> tuple[str, str]:
    parent, _, leaf = name.rpartition(".")
    return parent, leaf
