"""The forward passes of one call: the column at which a pass begins, and whether all edits acted.

A generation runs the model many times: with a cache or without, in chunks, with one token or many
at once. A hook before the model's forward reads the shape of the pass from its inputs; whether a
token is edited follows from its row and column alone.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from roadint.architecture.layers import inner_model
from roadint.architecture.properties import CACHES, cached_columns
from roadint.engines.transformers.view import After, Copy, view
from roadint.errors import RoadError


class Edits(Protocol):
    """What acts in the passes of one call."""

    @property
    def learns(self) -> bool:
        """Whether a parameter of what acts requires gradients."""

    def hooks(self, model: nn.Module, passes: "Passes") -> Iterable[tuple[nn.Module, After]]:
        """Modules of the model, and the hooks that run after them."""

    def finish(self, passes: "Passes") -> None:
        """Check, after a pass, that every edit acted.

        Raises:
            RoadError: where one did not.
        """


class Passes:
    """The forward passes of a call so far; the attributes are those of the newest one.

    Args:
        total: The columns of a call that is a single pass, those in its cache included; None where
            the inputs of the passes tell.
        drafted: Whether tokens that something else drafted follow those of the call, in the first
            pass too.

    Attributes:
        rows: How many rows the pass has.
        columns: How many columns the pass has.
        start: The column of the call with which the pass begins.
        number: The number of the pass, from 1.
        learns: Whether the call needs gradients.
    """

    def __init__(self, total: int | None = None, *, drafted: bool = False) -> None:
        self.drafted = drafted
        self.rows = self.columns = self.start = self.number = 0
        self.learns = False
        self.edits: list[Edits] = []
        self._total = total
        # The id of the module that began the pass: the module itself would be a reference cycle
        # where the pass never ends.
        self._begun: int | None = None

    def begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Read rows and columns before the forward of the model, or of the language model in it.

        Raises:
            RoadError: where the inputs do not tell them.
        """
        if self._begun is not None:
            return
        self._begun = id(module)
        inputs: Mapping[str, Any] = kwargs
        if args:
            inputs = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        tokens = _first_of(inputs, ("input_ids", "inputs_embeds"))
        if tokens is None:
            raise RoadError(
                f"{type(module).__name__} runs on neither input_ids nor inputs_embeds: its rows "
                "can't be told"
            )
        self.start = self._start_of(inputs, int(tokens.shape[1]))
        self.rows, self.columns = int(tokens.shape[0]), int(tokens.shape[1])
        self.number += 1

    def end(self, module: nn.Module, *_: Any) -> None:
        """Check the edits after the forward that began the pass."""
        if id(module) == self._begun:
            self._begun = None
            self.check()

    def check(self) -> None:
        """Check that every edit acted in the newest pass.

        Raises:
            RoadError: where one did not.
        """
        if not self.number:
            raise RoadError(
                "the call went by the transformers model that is edited: expected a model that "
                "runs its own modules"
            )
        for edit in self.edits:
            edit.finish(self)

    def check_gradients(self, path: str) -> None:
        """Check that a module runs with gradients in a call that needs them.

        Raises:
            RoadError: where it does not, and gradients would be lost silently.
        """
        if self.learns and not torch.is_grad_enabled():
            raise RoadError(
                f"{path} runs without gradients in a call that wants them (activation "
                "checkpointing of the reentrant kind, or a no_grad of the model's own): expected "
                "use_reentrant=False, no checkpointing, or torch.no_grad() around the call"
            )

    def _start_of(self, inputs: Mapping[str, Any], columns: int) -> int:
        if self._total is not None:
            if columns > self._total:
                raise RoadError(
                    f"a pass over {columns} columns in a call of {self._total}: expected those of "
                    "the call"
                )
            return self._total - columns
        cache = _first_of(inputs, CACHES)
        if cache is None:
            return 0
        end = self.start + self.columns
        if self.number and not self.drafted and getattr(cache, "is_compileable", False):
            # A static cache counts on the device; reading it would wait for the device. Its mask
            # may be cut to a window. Drafted tokens that are rejected leave it.
            return end
        mask = inputs.get("attention_mask")
        if torch.is_tensor(mask) and mask.ndim == 2 and mask.shape[1] >= columns:
            return int(mask.shape[1]) - columns
        cached = cached_columns(inputs)
        if cached or not self.number:
            return cached or 0
        # Recurrent states have no length and continue where the last pass ended; a model that
        # leaves its cache empty runs all columns again.
        return end if columns <= end else 0


def edited(
    model: nn.Module, edits: Iterable[Edits], passes: Passes, copies: list[Copy] | None = None
) -> nn.Module:
    """A view of the model whose forward passes carry the edits.

    Args:
        model: The caller's model.
        edits: In the order in which they act where they share a module.
        passes: Counts the passes of the view.
        copies: The copies that are made are added to it. `passes` does not hold them, since their
            hooks hold `passes`.
    """
    passes.edits = list(edits)
    passes.learns = torch.is_grad_enabled() and any(edit.learns for edit in passes.edits)
    after: dict[nn.Module, list[After]] = {}
    for edit in passes.edits:
        for module, hook in edit.hooks(model, passes):
            after.setdefault(module, []).append(hook)
    inner: Any = inner_model(model)
    body = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    entrances = {inner, body} if isinstance(body, nn.Module) else {inner}
    for module in entrances:
        after.setdefault(module, []).append(passes.end)
    before = {module: [passes.begin] for module in entrances}
    return view(model, after, before, copies=copies)


def _first_of(inputs: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((inputs[name] for name in names if inputs.get(name) is not None), None)
