"""The layers above the lowest edit, compiled for a training: what lies between two edits.

A layer's forward is compiled by itself, once for all layers of its class: edits, and whatever a
model does around its layers, stay outside and run as ever. Rows and columns are no constants of the
compiled code, so that batches of other shapes run it too. A layer with an edit or a hook inside
runs uncompiled.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from roadint.architecture.layers import find_layers
from roadint.engines.transformers.view import Forward
from roadint.errors import first_line
from roadint.model.road_model import RoadModel

logger = logging.getLogger(__name__)

Keys = Float[Tensor, "rows heads columns width"]
Forwards = Mapping[nn.Module, Forward]

# Mean differences of a token's likelihood, in nats, that rounding explains.
_ROUNDING, _HALF_PRECISION_ROUNDING = 1e-3, 0.25


def compiled_forwards(
    road: RoadModel, nll: Callable[[Forwards], tuple[Tensor, Any]], backend: str = "inductor"
) -> Forwards:
    """The compiled forwards of a model's layers; the log says how many, or why none.

    Args:
        road: The model to train.
        nll: Computes the negative log-likelihoods of some tokens with these forwards, and with
            none; they must agree.
        backend: One of torch.compile's.

    Returns:
        Layer → its forward; nothing where compiled layers do not do what the model does.
    """
    layers, forwards = _above(road), _forwards_of(road, backend)
    if not forwards:
        logger.warning(
            "nothing is compiled: in all %d layers above the lowest edit something acts inside",
            len(layers),
        )
        return {}
    try:
        difference = float((nll(forwards)[0] - nll({})[0]).detach().abs().mean())
    except Exception as error:  # a compiler may raise whatever it likes
        cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__} ({first_line(cause)})"
        logger.debug("what the compiler raised", exc_info=True)
    else:
        weight = next(road.model.parameters())
        half = weight.dtype.itemsize < 4 or torch.is_autocast_enabled(weight.device.type)
        if difference <= (_HALF_PRECISION_ROUNDING if half else _ROUNDING):
            counts = len(forwards), len(layers)
            logger.info("compiled: %d of the %d layers above the lowest edit", *counts)
            return forwards
        reason = f"compiled layers give other likelihoods (by {difference:.2g} nats a token)"
    logger.warning("nothing is compiled, training runs as ever: %s", reason)
    return {}


def _above(road: RoadModel) -> list[tuple[str, int, nn.Module]]:
    """The layers that a step runs with gradients: their paths, numbers and modules."""
    path, layers = find_layers(road.model)
    listed = [(f"{path}.{index}", index, layer) for index, layer in enumerate(layers)]
    return listed[road.untouched_layers() :]


def _forwards_of(road: RoadModel, backend: str) -> dict[nn.Module, Forward]:
    edited = list(_edited_paths(road))
    of_class: dict[type[nn.Module], Forward] = {}
    forwards: dict[nn.Module, Forward] = {}
    for path, index, layer in _above(road):
        if any(name.startswith(f"{path}.") for name in edited) or not _is_plain(layer):
            continue
        kind = type(layer)
        if kind not in of_class:
            of_class[kind] = torch.compile(kind.forward, dynamic=True, backend=backend)
        forwards[layer] = _forward(layer, index, of_class[kind])
    return forwards


def _forward(layer: nn.Module, index: int, compiled: Forward) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        named = {name: _of_layer(value, index) for name, value in kwargs.items()}
        return compiled(layer, *(_of_layer(value, index) for value in args), **named)

    return forward


def _edited_paths(road: RoadModel) -> Iterator[str]:
    """The modules whose outputs are edited."""
    for adapter in road.adapters.values():
        yield from (*adapter.layout.paths, *adapter.head_paths)
    yield from road.interventions.paths


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer does what its class says: without hooks, and forwards of other libraries."""
    return not any(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in layer.modules()
    )


class _LayerCache:
    """The keys and values that a cache holds of one layer.

    A cache of all layers would put the layer's number into the compiled code, which then would
    serve that layer alone.
    """

    def __init__(self, layer: Any) -> None:
        self.keys, self.values = layer.keys, layer.values

    def update(self, keys: Keys, values: Keys, *args: Any, **kwargs: Any) -> tuple[Keys, Keys]:
        """The layer's keys and values and these after them, which are not kept."""
        if self.keys is None:
            return keys, values
        return torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)


def _of_layer(value: Any, index: int) -> Any:
    return _LayerCache(value.layers[index]) if isinstance(value, Cache) else value
