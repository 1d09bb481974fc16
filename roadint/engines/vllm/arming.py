"""Arming: the layers of an engine's model call roadint's operations (needs vLLM).

Nothing of the model is replaced: decoder layers, attentions and feed-forward networks get a forward
of their own instance, linear layers a copy of their quant_method, whose `apply` turns its result.
Weights, quantisation and LoRA stay vLLM's.
"""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from roadint.engines.vllm.model_parts import Form, ModelParts
from roadint.engines.vllm.operations import Armed, ArmedLinear, ArmedSite, edit, turn_output
from roadint.engines.vllm.rows.hidden_rows import HiddenRows
from roadint.engines.vllm.rows.linear_rows import LinearRows
from roadint.errors import RoadError


def arm(parts: ModelParts, hidden: HiddenRows, linear: LinearRows, armed: Armed) -> None:
    """Make the layers of a model call roadint's operations.

    Args:
        parts: The parts of the model.
        hidden: The sites.
        linear: The linear layers.
        armed: The tables; what is armed is added to it.

    Raises:
        RoadError: where the model has no module for a site, or it is not known what that returns.
    """
    model = parts.model
    device = device_of(model)
    for site in hidden.sites:
        path, form = parts.site(*site)
        places = [
            (place, None if frame is None else copy.deepcopy(frame).to(device))
            for place, frame in hidden.at(site)
        ]
        armed.sites.append(ArmedSite(path, places))
        _wrap_forward(model.get_submodule(path), path, form, len(armed.sites) - 1)
    for path in linear.modules:
        armed.linears.append(ArmedLinear(path, linear.at(path)))
        _wrap_linear(model.get_submodule(path), len(armed.linears) - 1)


def _wrap_forward(module: nn.Module, path: str, form: Form, number: int) -> None:
    # Another plugin may have given the instance one before.
    own = vars(module).get("forward")
    forward = type(module).forward if own is None else getattr(own, "__func__", None)
    if forward is None:
        raise RoadError(
            f"{path} has a forward of its own, as offloaded weights give it, which an edit would "
            "replace: expected an engine without it"
        )

    def edited(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        hidden, *others = output if isinstance(output, tuple) else (output,)
        _check(hidden, others, path, form)
        edit(hidden, others[0] if form == "summed" else None, number)
        return output

    module.forward = MethodType(edited, module)


def _check(hidden: Any, others: list[Any], path: str, form: Form) -> None:
    """Refuse what a module returns if it is another thing than is known of it.

    Most engines run a model before they are ready, so that it is refused at their start.
    """
    if not isinstance(hidden, Tensor):
        raise RoadError(f"{path} returns no hidden states, so its output can't be edited")
    if form == "summed" and not (len(others) == 1 and others[0].shape == hidden.shape):
        raise RoadError(f"{path} returns {1 + len(others)} tensors: expected two of one shape")
    if form == "alone" and any(other is not None for other in others):
        raise RoadError(
            f"{path} leaves its bias to a later sum, so its output can't be edited: expected an "
            "edit of block_output"
        )


def _wrap_linear(module: Any, number: int) -> None:
    method = copy.copy(module.quant_method)
    kind = type(method)
    apply: Callable[..., Tensor] = kind.apply

    def turned(self: Any, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        output = apply(self, layer, x, bias)
        turn_output(output, number)
        return output

    method.__class__ = type(f"Turned{kind.__name__}", (kind,), {"apply": turned})
    module.quant_method = method


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights."""
    return next(model.parameters()).device
