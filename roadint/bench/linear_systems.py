"""What `roadint bench linear` compares: systems in which every row has an adapter."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import Layout, layout_of
from roadint.bench.peft_library import import_peft
from roadint.engines.adapters import Adapters
from roadint.engines.call import Call
from roadint.engines.transformers.linear_edits import LinearEdits
from roadint.engines.transformers.passes import Passes, edited
from roadint.grammar.composition import Composition

RANK = 8  # of LoRA

Maker = Callable[[nn.Module, Sequence[str], int], "LinearSystem"]
"""(a model or a layer, the paths of its linear layers, how many adapters) → the system"""


class SingleLinear(nn.Module):
    """One linear layer, as a module that PEFT can wrap.

    Args:
        width: The width of inputs and outputs.
        dtype: The dtype of the weights.
    """

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False, dtype=dtype).requires_grad_(False)

    def forward(self, x: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows tokens width"]:
        """The layer's output."""
        output: Tensor = self.layer(x)
        return output


@dataclass(frozen=True)
class LinearSystem:
    """A module with adapters on some of its linear layers.

    Attributes:
        name: As reports have it.
        module: The module.
        context: The adapter of every row → a context, which gives what to call in it.
        keywords: The adapter of every row → further keyword arguments of the call.
    """

    name: str
    module: nn.Module
    context: Callable[[Sequence[int]], AbstractContextManager[nn.Module]]
    keywords: Callable[[Sequence[int]], dict[str, Any]] = lambda rows: {}


def base_system(module: nn.Module, paths: Sequence[str], count: int) -> LinearSystem:
    """The module as it is."""
    return LinearSystem("base", module, lambda rows: nullcontext(module))


def road_system(module: nn.Module, paths: Sequence[str], count: int) -> LinearSystem:
    """RoAd1; as in RoadModel, every context makes the edit of its call anew."""
    layout = layout_of(module, paths)
    adapters = Adapters(random_adapter(f"a{number}", layout) for number in range(count))
    make_passes = Passes if isinstance(module, PreTrainedModel) else _LayerPasses

    def context(rows: Sequence[int]) -> AbstractContextManager[nn.Module]:
        compositions = tuple(Composition(((f"a{number}", 1.0),)) for number in rows)
        lowered = adapters.lower(Call(compositions, torch.ones(len(rows), 1, dtype=torch.bool)))
        edits = [] if lowered is None else [LinearEdits(lowered)]
        return nullcontext(edited(module, edits, make_passes()))

    return LinearSystem("roadint", module, context)


class _LayerPasses(Passes):
    """The passes of a single layer, whose input gives rows and columns."""

    def begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.rows, self.columns = args[0].shape[:2]
        self.number += 1


def peft_road_system(module: nn.Module, paths: Sequence[str], count: int) -> LinearSystem:
    """PEFT's RoAd1, on a copy of the module."""
    config = import_peft().RoadConfig(variant="road_1", group_size=2, target_modules=list(paths))
    return _peft_system("PEFT RoAd", config, module, count)


def peft_lora_system(module: nn.Module, paths: Sequence[str], count: int) -> LinearSystem:
    """PEFT's LoRA, on a copy of the module."""
    config = import_peft().LoraConfig(r=RANK, target_modules=list(paths))
    return _peft_system(f"PEFT LoRA r={RANK}", config, module, count)


def _peft_system(name: str, config: Any, module: nn.Module, count: int) -> LinearSystem:
    """PEFT takes a batch's adapters as `adapter_names`."""
    model = import_peft().get_peft_model(copy.deepcopy(module), config, adapter_name="a0").eval()
    for number in range(1, count):
        model.add_adapter(f"a{number}", config)
    for path, parameter in model.named_parameters():
        if any(part in path for part in ("road_theta", "lora_A", "lora_B")):
            nn.init.normal_(parameter, 0, 0.05)

    @contextmanager
    def context(rows: Sequence[int]) -> Iterator[nn.Module]:
        try:
            yield model
        except BaseException:
            for layer in model.modules():  # PEFT leaves hooks behind when a mixed batch fails
                layer._forward_pre_hooks.clear()
            raise

    def keywords(rows: Sequence[int]) -> dict[str, Any]:
        # Without names, PEFT uses the first adapter for all rows, which is quicker.
        return {"adapter_names": [f"a{number}" for number in rows]} if any(rows) else {}

    return LinearSystem(name, model, context, keywords)


def bmm_lora_system(module: nn.Module, paths: Sequence[str], count: int) -> LinearSystem:
    """LoRA with matrices a row, gathered once, by batched products, on a copy of the module."""
    model = copy.deepcopy(module)
    layers = [_BmmLora(model, path, count) for path in paths]

    @contextmanager
    def context(rows: Sequence[int]) -> Iterator[nn.Module]:
        index = torch.tensor(rows)
        for layer in layers:
            layer.gather(index)
        yield model

    return LinearSystem(f"bmm LoRA r={RANK}", model, context)


class _BmmLora:
    """Replaces a layer's forward by its output and B A x, with the matrices of every row."""

    def __init__(self, model: nn.Module, path: str, count: int) -> None:
        layer: Any = model.get_submodule(path)
        self._base, weight = layer.forward, layer.weight
        outputs, inputs = weight.shape
        self._a = torch.randn(count, inputs, RANK, dtype=weight.dtype) / inputs**0.5
        self._b = torch.randn(count, RANK, outputs, dtype=weight.dtype) * 0.05
        layer.forward = self.forward

    def gather(self, index: Int[Tensor, " rows"]) -> None:
        alike = bool((index == index[0]).all())
        chosen = index[0] if alike else index
        self.a, self.b = self._a[chosen], self._b[chosen]

    def forward(self, x: Float[Tensor, "rows tokens inputs"]) -> Tensor:
        if self.a.ndim == 3:
            return torch.baddbmm(self._base(x), torch.bmm(x, self.a), self.b)
        base, flat = self._base(x).flatten(0, -2), x.flatten(0, -2)
        return torch.addmm(base, flat @ self.a, self.b).view(*x.shape[:-1], -1)


def random_adapter(name: str, layout: Layout) -> RoadAdapter:
    """Make a RoAd1 adapter with random values, and without gradients.

    Args:
        name: The name of the adapter.
        layout: The adapter's layers.

    Returns:
        The adapter.
    """
    adapter = RoadAdapter(name, layout).requires_grad_(False)
    nn.init.normal_(adapter.theta, 0, 0.05)
    nn.init.normal_(adapter.alpha, 1, 0.05)
    return adapter
