"""What `roadint bench linear` compares: systems in which every row has an adapter."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.merging import merge
from roadint.adapters.targets import Layout, layout_of
from roadint.bench.peft_library import import_peft
from roadint.bench.shapes import noise, twin
from roadint.bench.timing import BASE
from roadint.engines.adapters import Adapters
from roadint.engines.call import Call
from roadint.engines.transformers.linear_edits import LinearEdits
from roadint.engines.transformers.passes import Passes, edited
from roadint.grammar.composition import Composition
from roadint.rotation.rotation import Variant

RANK = 8  # of LoRA

Maker = Callable[[nn.Module, Sequence[str], int], "LinearSystem"]
"""(a model or a layer, the paths of its linear layers, how many adapters) → the system"""


class SingleLinear(nn.Module):
    """One linear layer, as a module that PEFT can wrap.

    Args:
        width: The width of inputs and outputs.
        dtype: The dtype of the weights.
        device: The device of the weights.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.layer.weight.copy_(noise(width, width, like=self.layer.weight, seed=0) / width**0.5)
        self.to(device, dtype)

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

    def assigned(self, adapters: Sequence[int], label: str = "") -> "LinearSystem":
        """The system with a fixed adapter for every row, whatever rows it is called with.

        Args:
            adapters: The adapter of every row.
            label: Ends the name.
        """
        return LinearSystem(
            self.name + label,
            self.module,
            lambda _: self.context(adapters),
            lambda _: self.keywords(adapters),
        )


def base_system(module: nn.Module, paths: Sequence[str], count: int) -> LinearSystem:
    """The module as it is."""
    return LinearSystem(BASE, module, lambda rows: nullcontext(module))


def road_system(
    module: nn.Module,
    paths: Sequence[str],
    count: int,
    *,
    variant: Variant = "road_1",
    name: str = "roadint",
) -> LinearSystem:
    """RoAd; as in RoadModel, every context makes the edit of its call anew."""
    layout = layout_of(module, paths)
    made = [random_adapter(f"a{number}", layout, number, variant) for number in range(count)]
    adapters = Adapters().plus(module, made)
    make_passes = Passes if isinstance(module, PreTrainedModel) else _LayerPasses

    def context(rows: Sequence[int]) -> AbstractContextManager[nn.Module]:
        compositions = tuple(Composition(((f"a{number}", 1.0),)) for number in rows)
        lowered = adapters.lower(Call(compositions, torch.ones(len(rows), 1, dtype=torch.bool)))
        edits = [] if lowered is None else [LinearEdits(lowered)]
        return nullcontext(edited(module, edits, make_passes()))

    return LinearSystem(name, module, context)


class _LayerPasses(Passes):
    """The passes of a single layer, whose input gives rows and columns."""

    def begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.rows, self.columns = args[0].shape[:2]
        self.number += 1


def peft_road_system(module: nn.Module, paths: Sequence[str], count: int) -> LinearSystem:
    """PEFT's RoAd1, beside the module's own weights."""
    config = import_peft().RoadConfig(variant="road_1", group_size=2, target_modules=list(paths))
    return _peft_system("PEFT RoAd", config, module, count)


def peft_lora_system(
    module: nn.Module, paths: Sequence[str], count: int, *, rank: int = RANK
) -> LinearSystem:
    """PEFT's LoRA, beside the module's own weights."""
    config = import_peft().LoraConfig(r=rank, target_modules=list(paths))
    return _peft_system(f"PEFT LoRA r={rank}", config, module, count)


def _peft_system(name: str, config: Any, module: nn.Module, count: int) -> LinearSystem:
    """PEFT takes a batch's adapters as `adapter_names`."""
    model = import_peft().get_peft_model(twin(module), config, adapter_name="a0").eval()
    for number in range(1, count):
        model.add_adapter(f"a{number}", config)
    for seed, (path, parameter) in enumerate(model.named_parameters()):
        if any(part in path for part in ("road_theta", "lora_A", "lora_B")):
            parameter.data = 0.05 * noise(*parameter.shape, like=parameter, seed=seed)

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


def bmm_lora_system(
    module: nn.Module, paths: Sequence[str], count: int, *, rank: int = RANK
) -> LinearSystem:
    """LoRA with matrices a row, gathered once, by batched products, as FLoRA and the paper have it.

    One adapter for all rows is two plain products.
    """
    model = twin(module)
    layers = [_BmmLora(model, path, count, rank, seed) for seed, path in enumerate(paths)]

    @contextmanager
    def context(rows: Sequence[int]) -> Iterator[nn.Module]:
        # Held until the context ends: a captured graph reads them from where they are.
        held = [layer.gather(rows) for layer in layers]
        yield model
        del held

    return LinearSystem(f"bmm LoRA r={rank}", model, context)


def merged_system(
    module: nn.Module, paths: Sequence[str], count: int, *, lora_rank: int = 0
) -> LinearSystem:
    """RoAd1, or LoRA where it has a rank, merged into the weights of a whole copy of the module."""
    model, layout = copy.deepcopy(module), layout_of(module, paths)
    adapter = random_adapter("a0", layout, lora_rank=lora_rank)
    adapter.to(next(module.parameters()).device)
    merge(model, {"a0": adapter}, Composition((("a0", 1.0),)), keep=False)
    name = f"LoRA r={lora_rank} merged" if lora_rank else "roadint RoAd1 merged"
    return LinearSystem(name, model, lambda rows: nullcontext(model))


class _BmmLora:
    """Replaces a layer's forward by its output and B A x, with the matrices of every row."""

    def __init__(self, model: nn.Module, path: str, count: int, rank: int, seed: int) -> None:
        layer: Any = model.get_submodule(path)
        self._base, weight = layer.forward, layer.weight
        outputs, inputs = weight.shape
        draw = partial(noise, like=weight, seed=seed)
        # The adapters differ by factors: to draw all numbers of all of them would take minutes.
        factors = 1 + 0.1 * torch.arange(count, device=weight.device)[:, None, None]
        self._a = (draw(inputs, rank) / inputs**0.5 * factors).to(weight.dtype)
        self._b = (draw(rank, outputs) * 0.05 / factors.sqrt()).to(weight.dtype)
        layer.forward = self.forward

    def gather(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        index = torch.tensor(rows, device=self._a.device)
        chosen: Any = rows[0] if len(set(rows)) == 1 else index
        self.a, self.b = self._a[chosen], self._b[chosen]
        return self.a, self.b

    def forward(self, x: Float[Tensor, "rows tokens inputs"]) -> Tensor:
        if self.a.ndim == 3:
            return torch.baddbmm(self._base(x), torch.bmm(x, self.a), self.b)
        base, flat = self._base(x).flatten(0, -2), x.flatten(0, -2)
        return torch.addmm(base, flat @ self.a, self.b).view(*x.shape[:-1], -1)


def random_adapter(
    name: str, layout: Layout, seed: int = 0, variant: Variant = "road_1", lora_rank: int = 0
) -> RoadAdapter:
    """Make an adapter with random values, and without gradients.

    Args:
        name: The name of the adapter.
        layout: The adapter's layers.
        seed: The seed.
        variant: The variant of RoAd.
        lora_rank: The rank of a LoRA in the place of rotations; 0 for rotations.

    Returns:
        The adapter, on the CPU until it is attached to a model.
    """
    adapter = RoadAdapter(name, layout, variant=variant, lora_rank=lora_rank)
    adapter.requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    if lora_rank:
        nn.init.normal_(adapter.lora_b, 0, 0.05, generator=draw)
    else:
        nn.init.normal_(adapter.theta, 0, 0.05, generator=draw)
        nn.init.normal_(adapter.alpha, 1, 0.05, generator=draw)
    return adapter
