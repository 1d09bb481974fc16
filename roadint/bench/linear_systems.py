"""What `roadint bench linear` compares: adapters on the linear layers of a module, a batch of rows with adapters of their own."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import Layout, layout_of
from roadint.bench.learn import import_peft
from roadint.engines.adapters import Adapters
from roadint.engines.call import Call
from roadint.engines.transformers.linear_edits import LinearEdits
from roadint.engines.transformers.passes import Passes, edited
from roadint.grammar.composition import Composition

RANK = 8
Entered = Callable[
    [Sequence[int]], AbstractContextManager[nn.Module]
]  # the adapter of each row → what to call in a context


class System:
    """A module with `count` adapters on the linear layers at `paths`.

    context: for an assignment of adapters to rows, what is called and runs in it; keywords: of its call.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        context: Entered,
        keywords: Callable[[Sequence[int]], dict[str, Any]],
    ) -> None:
        self.name, self.module, self.context, self.keywords = name, module, context, keywords

    def through(self, rows: Sequence[int], label: str) -> "System":
        """The same with the adapter of each row settled."""
        context, keywords = self.context, self.keywords
        return System(
            f"{self.name}, {label}", self.module, lambda _: context(rows), lambda _: keywords(rows)
        )


def bare(module: nn.Module) -> System:
    """The module as it is."""
    return System("base", module, lambda rows: nullcontext(module), lambda rows: {})


def roadint(module: nn.Module, paths: Sequence[str], count: int) -> System:
    """RoAd1, a composition a row; the edit of a call is made anew for every context, as RoadModel does."""
    layout = layout_of(module, paths)
    adapters = Adapters(random_road(f"a{number}", layout) for number in range(count))
    passes_of = Passes if isinstance(module, PreTrainedModel) else _OfLayers

    def act(rows: Sequence[int]) -> AbstractContextManager[nn.Module]:
        compositions = tuple(Composition(((f"a{number}", 1.0),)) for number in rows)
        lowered = adapters.lower(Call(compositions, torch.ones(len(rows), 1, dtype=torch.bool)))
        edits = [] if lowered is None else [LinearEdits(lowered)]
        return nullcontext(edited(module, edits, passes_of()))

    return System("roadint", module, act, lambda rows: {})


class _OfLayers(Passes):
    """Of layers by themselves, whose input says rows and columns."""

    def begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.rows, self.columns = args[0].shape[:2]
        self.number += 1


def peft(kind: str, module: nn.Module, paths: Sequence[str], count: int) -> System:
    """PEFT's RoAd ("road") or LoRA ("lora"), which tell the rows of a batch apart by `adapter_names`."""
    library = import_peft()
    config = (
        library.RoadConfig(variant="road_1", group_size=2, target_modules=list(paths))
        if kind == "road"
        else library.LoraConfig(r=RANK, target_modules=list(paths))
    )
    model = library.get_peft_model(copy.deepcopy(module), config, adapter_name="a0").eval()
    for number in range(1, count):
        model.add_adapter(f"a{number}", config)
    for name, parameter in model.named_parameters():
        if any(each in name for each in ("road_theta", "lora_A", "lora_B")):
            nn.init.normal_(parameter, 0, 0.05)
    name = "PEFT RoAd" if kind == "road" else f"PEFT LoRA r={RANK}"

    @contextmanager
    def tidy(rows: Sequence[int]) -> Iterator[nn.Module]:
        try:
            yield model
        except BaseException:
            for layer in model.modules():  # what PEFT leaves behind when a mixed batch fails
                layer._forward_pre_hooks.clear()
            raise

    # The first adapter for all rows is PEFT's plain, quicker way.
    return System(
        name,
        model,
        tidy,
        lambda rows: {"adapter_names": [f"a{n}" for n in rows]} if any(rows) else {},
    )


def bmm(module: nn.Module, paths: Sequence[str], count: int) -> System:
    """LoRA with a matrix a row, gathered once and multiplied as batches: the quickest way that plain torch has."""
    model = copy.deepcopy(module)
    layers = [_BmmLora(model, path, count) for path in paths]

    @contextmanager
    def act(rows: Sequence[int]) -> Iterator[nn.Module]:
        index = torch.tensor(rows)
        for layer in layers:
            layer.gather(index)
        yield model

    return System(f"bmm LoRA r={RANK}", model, act, lambda rows: {})


class _BmmLora:
    """In place of a layer's forward; its own output, and B A x with the matrices of each row."""

    def __init__(self, model: nn.Module, path: str, count: int) -> None:
        layer: Any = model.get_submodule(path)
        self._base, weight = layer.forward, layer.weight
        outputs, inputs = weight.shape
        self._a = torch.randn(count, inputs, RANK, dtype=weight.dtype) / inputs**0.5
        self._b = torch.randn(count, RANK, outputs, dtype=weight.dtype) * 0.05
        layer.forward = self.forward

    def gather(self, index: Tensor) -> None:
        one = bool((index == index[0]).all())
        self.a, self.b = (
            (self._a[index[0]], self._b[index[0]]) if one else (self._a[index], self._b[index])
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.a.ndim == 2:
            return torch.addmm(
                self._base(x).flatten(0, -2), x.flatten(0, -2) @ self.a, self.b
            ).view(*x.shape[:-1], -1)
        return torch.baddbmm(self._base(x), torch.bmm(x, self.a), self.b)


def random_road(name: str, layout: Layout) -> RoadAdapter:
    """RoAd1 with values of some size, and no gradients."""
    adapter = RoadAdapter(name, layout).requires_grad_(False)
    nn.init.normal_(adapter.theta, 0, 0.05)
    nn.init.normal_(adapter.alpha, 1, 0.05)
    return adapter
