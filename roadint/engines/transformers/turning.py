"""The rotations of one call, at the targets of adapters of one layout: made once, then one product at a layer's output."""

import re
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.products import product
from roadint.engines.table import Bank
from roadint.engines.transformers.passes import Passes
from roadint.errors import RoadError
from roadint.rotation.kernels.torch import carries_tangents, turn, turn_
from roadint.rotation.rotation import Rotation

Terms = tuple[tuple[str, float], ...]
_IN_PLACE = (torch.float32, torch.bfloat16, torch.float16)
_EXPERT = re.compile(r"(^|\.)experts?(\.|$)")  # these run on the tokens that are sent to them
_SCRATCH = 1 << 20  # numbers that are worked on at a time: they stay in the processor's cache


class Turning:
    """u, v [rows, blocks] of all targets, or of the different compositions and `index`, which of them each row takes."""

    def __init__(
        self,
        members: Mapping[str, RoadAdapter],
        terms: Sequence[Terms],
        live: Sequence[frozenset[str] | None],
        bank: Bank,
    ) -> None:
        own = [
            tuple((name, strength) for name, strength in each if name in members) for each in terms
        ]
        learns = any(
            each.theta.requires_grad or each.alpha.requires_grad for each in members.values()
        )
        if (
            torch.is_grad_enabled() and learns
        ) or carries_tangents():  # a table would keep none of it
            distinct = {
                key: place for place, key in enumerate(dict.fromkeys(zip(own, live, strict=True)))
            }
            made = [product(members, terms, learning) for terms, learning in distinct]
            index = torch.tensor(
                [distinct[key] for key in zip(own, live, strict=True)], device=bank.device
            )
            rotation = _stacked(made)
            self.index = index if len(distinct) > 1 else None
        else:
            names = {name for each in own for name, _ in each}
            states = {name: bank.seen.state_of(members[name]) for name in names}
            keys: list[Hashable] = [
                tuple((*term, states[term[0]]) for term in each) for each in own
            ]
            rotation, self.index = bank.rows(
                keys,
                lambda key: product(members, [(name, s) for name, s, _ in key]),  # type: ignore[attr-defined]
            )
        like = next(iter(members.values()))
        self.paths, self.groups, blocks = like.layout.paths, like.groups, like.layout.blocks
        self.u = torch.split(rotation.u, blocks, dim=-1)
        self.v = (
            [None] * len(blocks) if rotation.v is None else torch.split(rotation.v, blocks, dim=-1)
        )


class Scratch:
    """Memory to work in: one tensor a width, which the layers of a call share, for the shape that outputs have at the moment."""

    def __init__(self) -> None:
        self._rows: torch.Size | None = None
        self._own: dict[tuple[int, torch.device], Tensor] = {}

    def of(self, output: Tensor) -> Tensor | None:
        """Float32 of the output's shape, or of so many of its rows as are worked on at a time; None where it is float32 itself."""
        if output.dtype is torch.float32:
            return None
        if output.shape[:-1] != self._rows:
            self._rows, self._own = output.shape[:-1], {}
        key = output.shape[-1], output.device
        if key not in self._own:
            few = max(1, _SCRATCH * len(output) // output.numel())
            self._own[key] = torch.empty_like(output[:few], dtype=torch.float32)
        return self._own[key]


class Layer:
    """What turns the output of one target. In a decode's loop, so that what a shape settles is settled once."""

    def __init__(self, turning: Turning, place: int, rows: int, scratch: Scratch) -> None:
        self._path, self._group = turning.paths[place], turning.groups[place]
        self._own, self._index = (turning.u[place], turning.v[place]), turning.index
        self._rows, self._scratch = rows, scratch
        self._shape: torch.Size | None = None

    def __call__(self, output: Tensor, passes: Passes) -> Tensor:
        """output: [rows, …, width], the layer's own, which is written over where nothing needs its gradient."""
        if output.shape != self._shape:
            self._settle(output, passes)
        if (
            self._in_place
            and not torch.is_grad_enabled()
            and not carries_tangents()
            and output.is_contiguous()
        ):
            return turn_(output, self._u, self._room)
        return turn(output, self._u, self._v, self._group).to(output.dtype)

    def _settle(self, output: Tensor, passes: Passes) -> None:
        """u, v beside an output of this shape."""
        u, v = self._own
        copies = 1
        if (
            self._index is not None or len(u) > 1
        ):  # else all rows turn alike, whatever the layer's rows are
            copies = copies_in(output, passes, self._rows, self._path)

        def beside(each: Tensor) -> Tensor:
            if self._index is not None:
                each = each.index_select(0, self._index)
            if copies > 1 and len(each) > 1:
                each = each.repeat_interleave(copies, dim=0)
            return each.reshape(len(each), *(1,) * (output.ndim - 2), each.shape[-1]).to(
                output.device
            )

        self._u, self._v = beside(u), None if v is None else beside(v)
        self._in_place = v is None and self._group == 2 and output.dtype in _IN_PLACE
        self._room = self._scratch.of(output) if self._in_place else None
        self._shape = None if u.requires_grad else output.shape  # a graph is of one use


def copies_in(output: Tensor, passes: Passes, rows: int, path: str) -> int:
    """How often an output has each of the call's rows: beams and returned sequences repeat them in place, and some layers give
    [rows · columns, width]. Raises RoadError where its rows are others: an image's, or the tokens that went to an expert."""
    copies, left = divmod(passes.rows, rows)
    if not left and copies and not _EXPERT.search(path):
        # Some layers have an axis of one between rows and columns, as multi-head latent attention has.
        columns = (
            output.shape[2 if output.shape[1] == 1 else 1] if output.ndim > 3 else passes.columns
        )
        if output.shape[0] == passes.rows and columns == passes.columns:
            return copies
        if output.ndim == 2 and output.shape[0] == passes.rows * passes.columns:
            return copies * passes.columns
    raise RoadError(
        f"{path} ran on {output.shape[0]} rows in a batch of {passes.rows}: its rows can't be told apart; "
        "leave it out of the targets, or give all rows one composition"
    )


def _stacked(rotations: Sequence[Rotation]) -> Rotation:
    v = None
    if any(each.v is not None for each in rotations):
        v = torch.stack(
            [torch.zeros_like(each.u) if each.v is None else each.v for each in rotations]
        )
    return Rotation(torch.stack([each.u for each in rotations]), v)
