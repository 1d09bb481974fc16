"""The edit of one call at the targets of adapters: for each row of the batch the rotation of its own composition."""

from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from roadint.composition import Composition
from roadint.errors import RoadError
from roadint.fused import turn, turn_
from roadint.hooks import acts, attached
from roadint.linear.bank import Bank
from roadint.linear.road import LinearRoad, by_layout, product
from roadint.linear.targets import Layout
from roadint.rotation import Rotation

Banks = MutableMapping[tuple[Layout, tuple[int, ...]], Bank]
Terms = tuple[tuple[str, float], ...]
_IN_PLACE = (torch.float32, torch.bfloat16, torch.float16)


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
        self._layers: dict[str, list[_Layer]] = {}
        for members in by_layout(self._acting):
            (layout, pairing), device = members[0].place, members[0].theta.device
            bank = banks.setdefault((layout, pairing), Bank(sum(layout.blocks), capacity, device))
            turning = _Turning({each.name: each for each in members}, terms, live, bank)
            for place, path in enumerate(layout.paths):
                self._layers.setdefault(path, []).append(turning.layer(place, pairing[place]))
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
            copies, left = divmod(output.shape[0], self._rows)
            if left:
                raise RoadError(
                    f"{path} ran on {output.shape[0]} rows in a batch of {self._rows}: its rows can't be told apart; "
                    "leave it out of the targets, or give all rows one composition"
                )
            turned = output
            for layer in turning:
                turned = layer(turned, copies)
            for act in beside:
                turned = act(args[0], turned, copies)
            return turned

        return hook


class _Turning:
    """The rotations of one layout, for the rows of a call."""

    def __init__(
        self, members: Mapping[str, LinearRoad], terms: Sequence[Terms], live: Sequence[frozenset[str] | None], bank: Bank
    ) -> None:
        own = [tuple((name, strength) for name, strength in each if name in members) for each in terms]
        if torch.is_grad_enabled() and any(each.theta.requires_grad or each.alpha.requires_grad for each in members.values()):
            distinct = {key: place for place, key in enumerate(dict.fromkeys(zip(own, live, strict=True)))}
            made = [product(members, terms, learning) for terms, learning in distinct]
            index = torch.tensor([distinct[key] for key in zip(own, live, strict=True)], device=bank.device)
            rotation = _stacked(made)
            self._index = index if len(distinct) > 1 else None
        else:
            keys: list[Hashable] = [tuple((*term, members[term[0]].state) for term in each) for each in own]
            rotation, self._index = bank.rows(keys, lambda key: product(members, [(name, s) for name, s, _ in key]))  # type: ignore[attr-defined]
        blocks = next(iter(members.values())).layout.blocks
        self._u = torch.split(rotation.u, blocks, dim=-1)
        self._v = [None] * len(blocks) if rotation.v is None else torch.split(rotation.v, blocks, dim=-1)

    def layer(self, place: int, group: int) -> "_Layer":
        """The rotations of one target."""
        return _Layer(self._u[place], self._v[place], self._index, group)


class _Layer:
    """One target's rotations: u, v [rows, blocks], or [different ones, blocks] and which of them each row takes."""

    def __init__(self, u: Tensor, v: Tensor | None, index: Tensor | None, group: int) -> None:
        self._own, self._index, self._group = (u, v), index, group
        self._ready: tuple[Any, tuple[Tensor, Tensor | None]] | None = None

    def __call__(self, output: Tensor, copies: int) -> Tensor:
        u, v = self._for(output, copies)
        if v is None and self._group == 2 and output.dtype in _IN_PLACE and not torch.is_grad_enabled() and output.is_contiguous():
            return turn_(output, u)  # a layer's output is its own
        return turn(output, u, v, self._group).to(output.dtype)

    def _for(self, output: Tensor, copies: int) -> tuple[Tensor, Tensor | None]:
        """u and v beside an output of that many copies of each row; kept for the next step of a generation."""
        shape = (output.ndim, copies, output.device)
        if self._ready is not None and self._ready[0] == shape:
            return self._ready[1]

        def beside(each: Tensor) -> Tensor:
            if self._index is not None:
                each = each.index_select(0, self._index)
            if copies > 1 and len(each) > 1:
                each = each.repeat_interleave(copies, dim=0)  # beams and returned sequences repeat each row in place
            return each.reshape(len(each), *(1,) * (output.ndim - 2), each.shape[-1]).to(output.device)

        u, v = self._own
        found = beside(u), None if v is None else beside(v)
        if not u.requires_grad:
            self._ready = (shape, found)
        return found


def _stacked(rotations: Sequence[Rotation]) -> Rotation:
    v = None
    if any(each.v is not None for each in rotations):
        v = torch.stack([torch.zeros_like(each.u) if each.v is None else each.v for each in rotations])
    return Rotation(torch.stack([each.u for each in rotations]), v)


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
                found.setdefault(path, []).append(_head(head, rows))
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


def _head(head: nn.Module, strengths: Tensor) -> Callable[[Tensor, Tensor, int], Tensor]:
    """The adapter's own head in the place of the model's, for the rows in which it acts at all."""

    def instead(x: Tensor, output: Tensor, copies: int) -> Tensor:
        rows = strengths.to(output.device).repeat_interleave(copies).nonzero()[:, 0]
        return output.index_copy(0, rows, head(x[rows].float()).to(output.dtype))

    return instead
