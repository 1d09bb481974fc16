"""The edit of one call at the targets of adapters: for each row of the batch the rotation of its own composition."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.products import by_layout
from roadint.adapters.targets import may_rest
from roadint.engines.table import Banks
from roadint.engines.transformers.passes import Passes
from roadint.engines.transformers.turning import Layer, Scratch, Terms, Turning, copies_in
from roadint.engines.transformers.view import After
from roadint.errors import RoadError
from roadint.grammar.composition import Composition

Beside = Callable[
    [Tensor, Tensor, Callable[[], int]], Tensor
]  # (input, output so far, how often it has each row) → output


class LinearEdit:
    """What the adapters do in one forward or generate call.

    adapters: by name. compositions: one a row; other names than adapters' are none of this edit's business. banks: keeps what was
    made for earlier calls. capacity: of a new bank. learning: one a row, the compositions whose adapters get the row's gradient.
    """

    def __init__(
        self,
        adapters: Mapping[str, RoadAdapter],
        compositions: Sequence[Composition],
        banks: Banks,
        capacity: int,
        learning: Sequence[Composition] | None = None,
    ) -> None:
        self._rows = len(compositions)
        self._ran: set[str] = set()
        self._widths: dict[str, int] = {}
        terms = [tuple(term for term in each.terms if term[0] in adapters) for each in compositions]
        live = [
            None if learning is None else frozenset(name for name, _ in each.terms)
            for each in learning or compositions
        ]
        self._acting = [
            adapters[name] for name in dict.fromkeys(name for each in terms for name, _ in each)
        ]
        self._layers: dict[str, list[Layer]] = {}
        scratch = Scratch()
        for members in by_layout(self._acting):
            layout = members[0].layout
            key, device = members[0].layout_and_groups, members[0].theta.device
            bank = banks.of(key, sum(layout.blocks), capacity, device)
            turning = Turning({each.name: each for each in members}, terms, live, bank)
            self._widths |= zip(layout.paths, layout.widths, strict=True)
            for place, path in enumerate(layout.paths):
                self._layers.setdefault(path, []).append(Layer(turning, place, self._rows, scratch))
        self._beside = _beside(self._acting, terms, live)

    @property
    def learns(self) -> bool:
        """Whether an adapter that acts has values that ask for gradients."""
        return any(value.requires_grad for each in self._acting for value in each.parameters())

    def hooks(self, model: nn.Module, passes: Passes) -> Iterator[tuple[nn.Module, After]]:
        """What runs after the targets and the heads."""
        heads = [path for each in self._acting for path in each.head_paths]
        for path in dict.fromkeys([*self._layers, *heads]):
            yield model.get_submodule(path), self._hook_of(path, passes)
        self._model = model

    def finish(self, passes: Passes) -> None:
        """Raises RoadError where a target's weights were used, but the target itself was not called, so that nothing acted."""
        if passes.number > 1:  # later passes may take from a cache what the first one computed
            return
        for path in self._layers.keys() - self._ran:
            if not may_rest(self._model, path):
                raise RoadError(
                    f"{path} did not run: the model uses its weights without calling it, so no adapter acts there; "
                    f"leave it out with exclude=[{path.rpartition('.')[2]!r}]"
                )

    def _hook_of(self, path: str, passes: Passes) -> After:
        turning, beside = self._layers.get(path, []), self._beside.get(path, [])

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if passes.number == 1:
                self._ran.add(path)
                _check_output(path, args, output, self._widths.get(path))
                passes.check_gradients(path)
            for layer in turning:
                output = layer(output, passes)
            for act in beside:
                output = act(args[0], output, partial(copies_in, output, passes, self._rows, path))
            return output

        return hook


def _check_output(path: str, args: Any, output: Any, width: int | None) -> None:
    if not torch.is_tensor(output) or not args or output.shape[-1] != (width or output.shape[-1]):
        raise RoadError(
            f"{path} is no layer that turns a tensor into one of its width, {width}: no adapter can act there; "
            f"leave it out with exclude=[{path.rpartition('.')[2]!r}]"
        )


def _beside(
    adapters: Sequence[RoadAdapter], terms: Sequence[Terms], live: Sequence[frozenset[str] | None]
) -> dict[str, list[Beside]]:
    """What acts beside the rotations: path → LoRA and heads."""
    found: dict[str, list[Beside]] = {}
    for adapter in adapters:
        strengths = torch.tensor([dict(each).get(adapter.name, 0.0) for each in terms])
        learning = torch.tensor([names is None or adapter.name in names for names in live])
        for still in (False, True) if adapter.lora_rank or adapter.head_paths else ():
            rows = strengths.where(learning != still, torch.zeros(()))
            if not bool(rows.any()):
                continue
            for path, (a, b) in zip(
                adapter.layout.paths, adapter.lora(learning=not still), strict=False
            ):
                found.setdefault(path, []).append(_lora(a, b, rows))
            for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
                found.setdefault(path, []).append(_head(head, rows, learning=not still))
    return found


def _lora(a: Tensor, b: Tensor, strengths: Tensor) -> Beside:
    """Adds `s · B A x`; strengths: [rows]."""
    alike = bool((strengths == strengths[0]).all())

    def add(x: Tensor, output: Tensor, copies: Callable[[], int]) -> Tensor:
        if alike:
            return output + ((x.to(a.dtype) @ a.T) @ b.T * float(strengths[0])).to(output.dtype)
        own = strengths.repeat_interleave(copies())
        rows = own.nonzero()[:, 0]
        scale = own[rows].reshape(-1, *(1,) * (output.ndim - 1)).to(output.device)
        rows = rows.to(output.device)
        added = (x[rows].to(a.dtype) @ a.T) @ b.T * scale
        return output.index_add(0, rows, added.to(output.dtype))

    return add


def _head(head: nn.Module, strengths: Tensor, *, learning: bool) -> Beside:
    """The adapter's own head in the place of the model's, for the rows in which it acts at all."""
    values = {
        name: value if learning else value.detach() for name, value in head.named_parameters()
    }

    def instead(x: Tensor, output: Tensor, copies: Callable[[], int]) -> Tensor:
        rows = strengths.repeat_interleave(copies()).nonzero()[:, 0].to(output.device)
        return output.index_copy(
            0, rows, functional_call(head, values, x[rows].float()).to(output.dtype)
        )

    return instead
