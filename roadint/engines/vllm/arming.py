"""Arming: the layers of an engine's model call roadint's operations (needs vLLM).

Nothing of the model is replaced: decoder layers, attentions and feed-forward networks get a forward
of their own instance, linear layers a copy of their quant_method, whose `apply` turns its result.
Weights, quantisation and LoRA stay vLLM's.
"""

import copy
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from roadint.architecture.layers import COMPONENTS
from roadint.engines.vllm.hidden_rows import HiddenRows, Site
from roadint.engines.vllm.linear_rows import LinearRows
from roadint.engines.vllm.operations import Armed, ArmedLinear, ArmedSite, edit, turn_output
from roadint.engines.vllm.shards import Part, Piece, pieces_of
from roadint.errors import RoadError, listing


def find_decoder_layers(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a model of vLLM.

    Args:
        model: The model.
        count: How many there are.

    Returns:
        Their path, and their list.

    Raises:
        RoadError: where they can't be told.
    """
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and "vision" not in path
    ]
    if len(lists) != 1:
        raise RoadError(
            f"no list of {count} decoder layers in vLLM's {type(model).__name__} (found "
            f"{listing(path for path, _ in lists)}): expected a decoder-only language model"
        )
    return lists[0]


def find_pieces(model: nn.Module, body: str) -> tuple[dict[str, list[Piece]], dict[str, int]]:
    """The linear layers of a model's body, by the names that transformers gives them.

    Args:
        model: The model.
        body: The path of the list of its decoder layers.

    Returns:
        Target → where its output lies; and module → the width of its output in this process.
    """
    from vllm.model_executor.layers.linear import LinearBase

    fused: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    past = _read_past(model)
    pieces: dict[str, list[Piece]] = {}
    widths: dict[str, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, LinearBase) or not path.startswith(f"{body}."):
            continue
        parent, _, name = path.rpartition(".")
        names = [f"{parent}.{part}" for part in fused.get(name, [name])]
        parts, rank, processes = _parts_of(module)
        if len(names) not in (1, len(parts)) or module in past or _can_not_be_turned(module):
            continue
        found = pieces_of(path, names, parts, rank, processes)
        for target, listed in found.items():
            pieces[_name_in_transformers(target, mapper)] = listed
        widths[path] = sum(piece.width for listed in found.values() for piece in listed)
    return pieces, widths


def _read_past(model: nn.Module) -> set[nn.Module]:
    """Layers whose weights others read, past their forward, where an edit would not act."""
    from vllm.model_executor.layers.attention.mla_attention import MLAAttention

    return {module.kv_b_proj for module in model.modules() if isinstance(module, MLAAttention)}


def _can_not_be_turned(module: Any) -> bool:
    """Whether a layer does not turn into its output what its quant_method computes.

    Some hand their bias on, for the model to add it later; some have kernels of their own for small
    batches.
    """
    from vllm.model_executor.layers import linear

    known = (linear.ReplicatedLinear, linear.ColumnParallelLinear, linear.RowParallelLinear)
    is_plain = any(type(module).forward is kind.forward for kind in known)
    hands_bias_on = module.skip_bias_add and getattr(module, "bias", None) is not None
    return bool(not is_plain or hands_bias_on)


def _parts_of(module: Any) -> tuple[list[Part], int, int]:
    """The matrices of a linear layer, the number of its process, and how many share its output."""
    from vllm.model_executor.layers import linear

    if isinstance(module, linear.QKVParallelLinear):
        key, copies = module.head_size, module.num_kv_head_replicas
        value = module.v_head_size
        heads = module.total_num_kv_heads
        parts = [
            Part(module.total_num_heads * key),
            Part(heads * key, copies),
            Part(heads * value, copies),
        ]
    elif isinstance(module, (linear.RowParallelLinear, linear.ReplicatedLinear)):
        sizes = getattr(module, "output_sizes", None) or [module.output_size]
        return [Part(size) for size in sizes], 0, 1
    else:
        sizes = getattr(module, "output_sizes", None) or [module.output_size]
        parts = [Part(size) for size in sizes]
    return parts, module.tp_rank, module.tp_size


def _name_in_transformers(path: str, mapper: Any) -> str:
    """The path by which transformers' model knows a layer, where vLLM moved the prefix."""
    for old, new in getattr(mapper, "orig_to_new_prefix", None or {}).items():
        if new and path.startswith(new):
            return str(old) + path.removeprefix(new)
    return path


def arm(model: nn.Module, body: str, hidden: HiddenRows, linear: LinearRows, armed: Armed) -> None:
    """Make the layers of a model call roadint's operations.

    Args:
        model: The model.
        body: The path of the list of its decoder layers.
        hidden: The sites.
        linear: The linear layers.
        armed: The tables; what is armed is added to it.

    Raises:
        RoadError: where the model has no module for a site.
    """
    device = device_of(model)
    order = {id(place): number for number, place in enumerate(hidden.places.by_key.values())}
    for site in hidden.sites:
        path = _path_of(model, body, site)
        places = [
            (order[id(place)], place, None if frame is None else copy.deepcopy(frame).to(device))
            for place, frame in hidden.at(site)
        ]
        armed.sites.append(ArmedSite(path, places))
        _wrap_forward(model.get_submodule(path), len(armed.sites) - 1)
    order = {id(place): number for number, place in enumerate(linear.places.by_key.values())}
    for path in linear.modules:
        armed.linears.append(
            ArmedLinear(path, [(order[id(place)], place) for place in linear.at(path)])
        )
        _wrap_linear(model.get_submodule(path), len(armed.linears) - 1)


def _path_of(model: nn.Module, body: str, site: Site) -> str:
    layer, component = site
    path = f"{body}.{layer}"
    names = COMPONENTS[component]
    block = model.get_submodule(path)
    if not names:
        return path
    for name in names:
        if isinstance(getattr(block, name, None), nn.Module):
            return f"{path}.{name}"
    raise RoadError(
        f"layer {layer} of vLLM's {type(model).__name__} has no {component}: looked for "
        f"{listing(names)} in it"
    )


def _wrap_forward(module: nn.Module, number: int) -> None:
    # Another plugin may have given the instance one before.
    forward = getattr(vars(module).get("forward"), "__func__", type(module).forward)

    def edited(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if isinstance(output, tuple):
            _check_pair(output, type(self).__name__)
            edit(output[0], output[1], number)
        else:
            edit(output, None, number)
        return output

    module.forward = MethodType(edited, module)


def _check_pair(output: tuple[Any, ...], name: str) -> None:
    if len(output) != 2 or output[0].shape != output[1].shape:
        raise RoadError(
            f"{name} gives {len(output)} tensors: expected the hidden states, or what it added and "
            "the residual"
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
