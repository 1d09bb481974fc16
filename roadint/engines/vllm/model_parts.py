"""Where the sites and the linear layers of an engine's model are (needs vLLM)."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from roadint.architecture.layers import COMPONENTS, component_in, find_layers
from roadint.engines.vllm.known_layers import KnownLayer, known_layer
from roadint.engines.vllm.rows.shards import Part, Piece, pieces_of
from roadint.errors import RoadError, listing

Form = Literal["summed", "first", "alone"]
"""What a module returns: two parts whose sum is its output, its output before others, or it alone.
"""

_SHARDS: list[Any] = ["q", "k", "v", *range(8)]  # by which vLLM knows the parts of a fused layer


class ModelParts:
    """The parts of a model of vLLM.

    Args:
        model: The model.
        count: How many decoder layers it has.

    Raises:
        RoadError: where they can't be told.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        from vllm.model_executor.models.transformers.base import Base

        self.model = model
        self._rename, self._fused = _renaming(model), _fused(model)
        self._refused: dict[str, str] = {}
        self.is_of_transformers = isinstance(model, Base)
        if self.is_of_transformers:
            self.body, self.layers = find_layers(model)
        else:
            self.body, self.layers = _find_layers(model, count)

    def site(self, layer: int, component: str) -> tuple[str, Form]:
        """The module whose output is a site.

        Args:
            layer: From 0.
            component: One of COMPONENTS.

        Returns:
            Its path, and what it returns.

        Raises:
            RoadError: where the model has none, or it is not known what it returns.
        """
        path, block = f"{self.body}.{layer}", self.layers[layer]
        known = None if self.is_of_transformers else known_layer(block)
        names = COMPONENTS[component]
        if not names:
            return path, "summed" if known is not None and known.summed else "first"
        name = component_in(block, component)
        if name is None:
            raise RoadError(
                f"layer {layer} of vLLM's {type(self.model).__name__} has no {component}: looked "
                f"for {listing(names)} in it; try 'block_output'"
            )
        _check_bias(getattr(block, name), f"{path}.{name}")
        return f"{path}.{name}", "first" if known is None else "alone"

    def linear(self) -> tuple[dict[str, list[Piece]], dict[str, int]]:
        """The linear layers, by the names that they would have in vLLM if none were fused.

        Returns:
            Target → where its output lies; and module → the width of its output in this process.

        Raises:
            RoadError: where it is not known how a layer fuses them.
        """
        from vllm.model_executor.layers.linear import LinearBase

        pieces: dict[str, list[Piece]] = {}
        widths: dict[str, int] = {}
        read = _read_directly(self.model)
        inside = self.body.rpartition(".")[0] + "."
        for path, module in self.model.named_modules():
            if not isinstance(module, LinearBase) or not path.startswith(inside):
                continue
            names = self._names(path)
            matrices, rank, processes = _matrices_of(module)
            why = _why_not(module, id(module) in read, names, matrices)
            if any(part.width * part.copies // processes % 2 for part in matrices):
                why = "has an odd number of dims of it in a process"
            if why is not None:
                self._refused.update(dict.fromkeys(names, why))
                continue
            known = self._known(path)
            is_grouped = known is not None and path.rpartition(".")[2] in known.grouped
            groups = module.total_num_kv_heads if is_grouped else 1
            # transformers may have one layer in the place of the fused one too.
            whole = pieces_of(path, [path], matrices, rank, processes, groups)
            pieces |= whole
            widths[path] = sum(piece.width for piece in whole[path])
            if len(names) > 1:
                pieces |= pieces_of(path, names, matrices, rank, processes)
            if known is not None:
                moved = [
                    name for name in (path, *names) if name.rpartition(".")[2] in known.reordered
                ]
                self._refused.update(dict.fromkeys(moved, "keeps its outputs in another order"))
        return pieces, widths

    def name_of(self, target: str) -> str:
        """The name of a target, by transformers' name of it.

        Raises:
            RoadError: where it can't be turned.
        """
        name = self._rename(target)
        if name in self._refused:
            raise RoadError(f"{target}, but vLLM {self._refused[name]}: expected other targets")
        return name

    def _names(self, path: str) -> list[str]:
        """The names of the layers that one is fused from; its own where it is not."""
        parent, _, name = path.rpartition(".")
        parts = self._fused.get(path) or self._fused.get(name) or [name]
        return [f"{parent}.{part}" for part in parts]

    def _known(self, path: str) -> KnownLayer | None:
        """What is known of the decoder layer that a module is in; None for transformers' own."""
        if self.is_of_transformers or not path.startswith(f"{self.body}."):
            return None
        layer = path.removeprefix(f"{self.body}.").partition(".")[0]
        return known_layer(self.layers[int(layer)])


def _find_layers(model: Any, count: int) -> tuple[str, nn.ModuleList]:
    """The path of the list of a model's decoder layers, and the list."""
    language = model.get_language_model() if hasattr(model, "get_language_model") else model
    inside = {id(module) for module in language.modules()}
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in inside
    ]
    outermost = min((path.count(".") for path, _ in lists), default=0)  # experts lie inside
    lists = [(path, layers) for path, layers in lists if path.count(".") == outermost]
    if len(lists) != 1:
        raise RoadError(
            f"no list of {count} decoder layers in vLLM's {type(model).__name__} (found "
            f"{listing(path for path, _ in lists)}): expected a decoder-only language model"
        )
    return lists[0]


def _read_directly(model: nn.Module) -> set[int]:
    """The layers whose weights attention reads, beside calling them or in place of it."""
    from vllm.model_executor.layers.attention import MLAAttention

    attentions = [module for module in model.modules() if isinstance(module, MLAAttention)]
    return {id(attention.kv_b_proj) for attention in attentions}


def _check_bias(component: nn.Module, path: str) -> None:
    """Refuse a component that returns its bias beside its output."""
    if any(_leaves_bias(part) for part in component.modules()):
        raise RoadError(
            f"{path} leaves its bias to a later sum, so its output can't be edited: expected an "
            "edit of block_output"
        )


def _leaves_bias(module: Any) -> bool:
    """Whether a linear layer hands its bias on, to be added later."""
    return bool(getattr(module, "skip_bias_add", False) and module.bias is not None)


def _why_not(module: Any, is_read: bool, names: list[str], matrices: list[Part]) -> str | None:
    """Why a layer's output can't be turned, if so."""
    from vllm.model_executor.layers import linear

    known = (linear.ReplicatedLinear, linear.ColumnParallelLinear, linear.RowParallelLinear)
    if not any(type(module).forward is kind.forward for kind in known):
        return "has kernels of its own for it"
    if _leaves_bias(module):
        return "adds the bias of it later, elsewhere"
    if is_read:
        return "reads its weights in its attention, and does not call it"
    if len(names) not in (1, len(matrices)):
        return f"fuses {len(names)} layers to {len(matrices)} matrices"
    return None


def _matrices_of(module: Any) -> tuple[list[Part], int, int]:
    """The matrices of a linear layer, the number of its process, and how many share its output."""
    from vllm.model_executor.layers import linear

    if isinstance(module, linear.QKVParallelLinear):
        key, copies = module.head_size, module.num_kv_head_replicas
        heads = module.total_num_kv_heads
        parts = [
            Part(module.total_num_heads * key),
            Part(heads * key, copies),
            Part(heads * module.v_head_size, copies),
        ]
        return parts, module.tp_rank, module.tp_size
    sizes = getattr(module, "output_sizes", None) or [module.output_size]
    parts = [Part(size) for size in sizes]
    if isinstance(module, (linear.RowParallelLinear, linear.ReplicatedLinear)):
        return parts, 0, 1
    return parts, module.tp_rank, module.tp_size


def _fused(model: nn.Module) -> dict[str, list[str]]:
    """The name, or the path, of a fused layer → the names of its parts, in order."""
    found: dict[str, dict[Any, str]] = {}
    for module in model.modules():
        stacked = getattr(getattr(module, "hf_to_vllm_mapper", None), "orig_to_new_stacked", {})
        for part, (whole, index) in stacked.items():
            if index in _SHARDS:
                name = part.strip(".").rpartition(".")[2]
                found.setdefault(whole.strip("."), {})[_SHARDS.index(index)] = name
    fused = {name: [parts[index] for index in sorted(parts)] for name, parts in found.items()}
    return {**fused, **(getattr(model, "packed_modules_mapping", None) or {})}


def _renaming(model: nn.Module) -> Callable[[str], str]:
    """How the names of modules in transformers become those in vLLM, but for fused layers."""
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return lambda name: name
    map_name = mapper.get_rename_mapper().map_name

    def rename(name: str) -> str:
        mapped: str = map_name(f"{name}.weight") or name  # it is made for the names of weights
        return mapped.removesuffix(".weight")

    return rename
