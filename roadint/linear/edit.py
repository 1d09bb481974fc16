"""The edit of one call at the targets of adapters: for each row of the batch the rotation of its own composition."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from roadint.composition import Composition
from roadint.hooks import acts, attached
from roadint.linear.bank import Bank
from roadint.linear.road import LinearRoad, by_layout
from roadint.linear.targets import Layout
from roadint.linear.turning import Layer, Scratch, Terms, Turning, copies_in

Banks = MutableMapping[tuple[Layout, tuple[int, ...]], Bank]


class LinearEdit:
    """What the adapters do in one forward or generate call.

    adapters: by name. compositions: one a row; other names than adapters' are none of this edit's business. banks: keeps what was
    made for earlier calls. capacity: of a new bank. learning: one a row, the compositions whose adapters get the row's gradient.
    """

    def __init__(
        self,
        adapters: Mapping[str, LinearRoad],
        compositions: Sequence[Composition],
        banks: Banks,
        capacity: int,
        learning: Sequence[Composition] | None = None,
    ) -> None:
        self._rows = len(compositions)
        terms = [tuple(term for term in each.terms if term[0] in adapters) for each in compositions]
        live = [None if learning is None else frozenset(name for name, _ in each.terms) for each in learning or compositions]
        self._acting = [adapters[name] for name in dict.fromkeys(name for each in terms for name, _ in each)]
        self._layers: dict[str, list[Layer]] = {}
        scratch = Scratch()
        for members in by_layout(self._acting):
            (layout, pairing), device = members[0].place, members[0].theta.device
            bank = banks.setdefault((layout, pairing), Bank(sum(layout.blocks), capacity, device))
            turning = Turning({each.name: each for each in members}, terms, live, bank)
            for place, path in enumerate(layout.paths):
                self._layers.setdefault(path, []).append(Layer(turning, place, self._rows, scratch))
        self._beside = _beside(self._acting, terms, live)

    def __bool__(self) -> bool:
        return bool(self._acting)

    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Carry the edit into every forward pass of `model` in this context."""
        heads = {path: None for each in self._acting for path in each.head_paths}
        hooks = [(model.get_submodule(path), self._hook_of(path)) for path in dict.fromkeys([*self._layers, *heads])]
        return attached(self, hooks)

    def _hook_of(self, path: str) -> Callable[[nn.Module, Any, Any], Any]:
        turning, beside = self._layers.get(path, []), self._beside.get(path, [])

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            if not acts(self):
                return None
            for layer in turning:
                output = layer(output)
            for act in beside:
                output = act(args[0], output, copies_in(output, self._rows, path))
            return output

        return hook


def _beside(
    adapters: Sequence[LinearRoad], terms: Sequence[Terms], live: Sequence[frozenset[str] | None]
) -> dict[str, list[Callable[[Tensor, Tensor, int], Tensor]]]:
    """What acts beside the rotations: path → LoRA and heads, (input, output so far, copies) → output."""
    found: dict[str, list[Callable[[Tensor, Tensor, int], Tensor]]] = {}
    for adapter in adapters:
        strengths = torch.tensor([dict(each).get(adapter.name, 0.0) for each in terms])
        learning = torch.tensor([names is None or adapter.name in names for names in live])
        for still in (False, True) if adapter.lora_rank or adapter.head_paths else ():
            rows = strengths.where(learning != still, torch.zeros(()))
            if not bool(rows.any()):
                continue
            for path, (a, b) in zip(adapter.layout.paths, adapter.lora(learning=not still), strict=False):
                found.setdefault(path, []).append(_lora(a, b, rows))
            for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
                found.setdefault(path, []).append(_head(head, rows, learning=not still))
    return found


def _lora(a: Tensor, b: Tensor, strengths: Tensor) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Adds `s · B A x`; strengths: [rows]."""

    def add(x: Tensor, output: Tensor, copies: int) -> Tensor:
        own = strengths.to(output.device).repeat_interleave(copies)
        rows = own.nonzero()[:, 0]
        scale = own[rows].reshape(-1, *(1,) * (output.ndim - 1))
        added = (x[rows].to(a.dtype) @ a.T) @ b.T * scale
        return output.index_add(0, rows, added.to(output.dtype))

    return add


def _head(head: nn.Module, strengths: Tensor, *, learning: bool) -> Callable[[Tensor, Tensor, int], Tensor]:
    """The adapter's own head in the place of the model's, for the rows in which it acts at all."""
    values = {name: value if learning else value.detach() for name, value in head.named_parameters()}

    def instead(x: Tensor, output: Tensor, copies: int) -> Tensor:
        rows = strengths.to(output.device).repeat_interleave(copies).nonzero()[:, 0]
        return output.index_copy(0, rows, functional_call(head, values, x[rows].float()).to(output.dtype))

    return instead
