"""The edits of one call at the targets of adapters, as hooks: rotations, LoRA and heads."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from roadint.adapters.targets import may_rest
from roadint.architecture.devices import on_device
from roadint.architecture.layers import inner_model
from roadint.engines.adapters import LoweredAdapters
from roadint.engines.transformers.passes import Passes
from roadint.engines.transformers.turning import Scratch, Turn, copies_in
from roadint.engines.transformers.view import After
from roadint.errors import RoadError

Beside = Callable[[Tensor, Tensor, Callable[[], int]], Tensor]
"""(input, output so far, how often the output has every row of the call) → output"""


class LinearEdits:
    """What the adapters of a model do in one call.

    Args:
        lowered: The adapters that act, and their rotations.
    """

    def __init__(self, lowered: LoweredAdapters) -> None:
        self._rows = len(lowered.terms)
        self._acting = lowered.acting
        self._ran: set[str] = set()
        self._widths: dict[str, int] = {}
        self._turns: dict[str, list[Turn]] = {}
        scratch = Scratch()
        for rotations in lowered.rotations:
            layout = rotations.layout
            self._widths |= zip(layout.paths, layout.widths, strict=True)
            for target, path in enumerate(layout.paths):
                turn = Turn(rotations, target, self._rows, scratch)
                self._turns.setdefault(path, []).append(turn)
        self._beside = _beside(lowered)

    @property
    def learns(self) -> bool:
        """Whether a parameter of what acts requires gradients."""
        return any(
            value.requires_grad for adapter in self._acting for value in adapter.parameters()
        )

    def hooks(self, model: nn.Module, passes: Passes) -> Iterator[tuple[nn.Module, After]]:
        """The targets and heads, and the hooks that run after them."""
        heads = [path for adapter in self._acting for path in adapter.head_paths]
        for path in dict.fromkeys([*self._turns, *heads]):
            yield model.get_submodule(path), self._hook(path, passes)
        self._model = model

    def finish(self, passes: Passes) -> None:
        """Check, after the first pass, that every target ran.

        Raises:
            RoadError: where one did not, so that no adapter acted there.
        """
        if passes.number > 1:  # later passes may take from a cache what the first one computed
            return
        for path in self._beside.keys() - self._turns.keys() - self._ran:
            if may_rest(self._model, path) or self._is_embedding(path):
                continue
            raise RoadError(
                f"{path} did not run, so that the adapter's copy of it does nothing: expected the "
                "name of a module that the model calls, such as 'classifier'"
            )
        for path in self._turns.keys() - self._ran:
            if not may_rest(self._model, path):
                raise RoadError(
                    f"{path} did not run: the model uses its weights without calling it, so no "
                    f"adapter acts there; leave it out with exclude=[{_last_name(path)!r}]"
                )

    def _is_embedding(self, path: str) -> bool:
        """Whether a module is the input's embeddings, which a call of inputs_embeds leaves out."""
        inner: Any = inner_model(self._model)
        return self._model.get_submodule(path) is inner.get_input_embeddings()

    def _hook(self, path: str, passes: Passes) -> After:
        turns, beside = self._turns.get(path, []), self._beside.get(path, [])

        def act(module: nn.Module, args: Any, output: Any) -> Any:
            if passes.number == 1:
                self._ran.add(path)
                _check_output(path, args, output, self._widths.get(path))
                passes.check_gradients(path)
            for turn in turns:
                output = turn(output, passes)
            for add in beside:
                output = add(args[0], output, partial(copies_in, output, passes, self._rows, path))
            return output

        return act


def _check_output(path: str, args: Any, output: Any, width: int | None) -> None:
    if not torch.is_tensor(output) or not args or output.shape[-1] != (width or output.shape[-1]):
        raise RoadError(
            f"{path} is no layer that turns a tensor into one of its width, {width}: no adapter "
            f"can act there; leave it out with exclude=[{_last_name(path)!r}]"
        )


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def _beside(lowered: LoweredAdapters) -> dict[str, list[Beside]]:
    """LoRA and heads, by path, which act beside the rotations.

    An adapter has two steps where it learns from some rows and only acts in others: the second step
    takes detached values.
    """
    steps: dict[str, list[Beside]] = {}
    for adapter in lowered.acting:
        if not (adapter.lora_rank or adapter.head_paths):
            continue
        strengths = torch.tensor(
            [dict(row).get(adapter.name, 0.0) for row in lowered.terms], dtype=torch.float32
        )
        learns = torch.tensor(
            [names is None or adapter.name in names for names in lowered.learning]
        )
        for learning in (True, False):
            of_rows = strengths.where(learns == learning, strengths.new_zeros(()))
            if not bool(of_rows.any()):
                continue
            rows = _ActingRows(of_rows)
            lora = adapter.lora(learning=learning)
            for path, (a, b) in zip(adapter.layout.paths, lora, strict=False):
                steps.setdefault(path, []).append(_lora(a, b, rows))
            for path, head in zip(adapter.head_paths, adapter.heads, strict=True):
                steps.setdefault(path, []).append(_head(head, rows, learning=learning))
    return steps


class _ActingRows:
    """The rows in which an adapter acts, and its strengths in them.

    Args:
        strengths: One a row of the call, 0 where it does not act.
    """

    def __init__(self, strengths: Float[Tensor, " rows"]) -> None:
        self._strengths = strengths
        self.alike = float(strengths[0]) if bool((strengths == strengths[0]).all()) else None
        self._on: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def on(
        self, device: torch.device, copies: int
    ) -> tuple[Int[Tensor, " acting"], Float[Tensor, " acting"]]:
        """Indices and strengths on a device, in outputs that have every row so often."""
        key = device, copies
        if key not in self._on:
            strengths = self._strengths.repeat_interleave(copies)
            rows = strengths.nonzero()[:, 0]
            self._on[key] = on_device(rows, device), on_device(strengths[rows], device)
        return self._on[key]


def _lora(
    a: Float[Tensor, "rank inputs"],
    b: Float[Tensor, "outputs rank"],
    acting: _ActingRows,
) -> Beside:
    """Add `s · B A x`."""

    def add(x: Tensor, output: Tensor, copies: Callable[[], int]) -> Tensor:
        nonlocal a, b
        a, b = a.to(x.device), b.to(x.device)  # once: the target has the same device in every pass
        if acting.alike is not None:
            added = (x.to(a.dtype) @ a.T) @ b.T * acting.alike
            return output + added.to(output.dtype)
        rows, strengths = acting.on(output.device, copies())
        scale = strengths.reshape(-1, *(1,) * (output.ndim - 1))
        added = (x[rows].to(a.dtype) @ a.T) @ b.T * scale
        return output.index_add(0, rows, added.to(output.dtype))

    return add


def _head(head: nn.Module, acting: _ActingRows, *, learning: bool) -> Beside:
    """Replace the model's head by the adapter's, in the rows in which it acts."""
    values = {
        name: value if learning else value.detach() for name, value in head.named_parameters()
    }

    def replace(x: Tensor, output: Tensor, copies: Callable[[], int]) -> Tensor:
        values.update({name: value.to(x.device) for name, value in values.items()})
        rows, _ = acting.on(output.device, copies())
        taken = x[rows]  # token ids, where the head is an embedding
        taken = taken.float() if taken.is_floating_point() else taken
        result = functional_call(head, values, taken)
        return output.index_copy(0, rows, result.to(output.dtype))

    return replace
