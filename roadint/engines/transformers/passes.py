"""The forward passes of one call: where each of them stands in the call's rows and columns, and that every edit acts in it.

A generation runs the model many times, with a cache or without, in chunks, with several tokens at once. The model itself tells,
before its layers run, what this pass is given; whether a token is edited follows from its place alone.
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


class Acting(Protocol):
    """An edit of a call."""

    @property
    def learns(self) -> bool:
        """Whether what acts has values that ask for gradients."""

    def hooks(self, model: nn.Module, passes: "Passes") -> Iterable[tuple[nn.Module, After]]:
        """What runs after which modules of the model."""

    def finish(self, passes: "Passes") -> None:
        """After each pass. Raises RoadError where something that was asked for did not act in it."""


class Passes:
    """rows, columns: of the tokens of the pass that runs. start: with which column of the call it begins. number: from 1.

    learns: whether gradients are wanted from the call.
    total: the columns of a call that is one pass, with those in its cache; None where the passes themselves tell.
    drafted: whether tokens come that something else drafted, in the first pass too, behind the call's own.
    """

    def __init__(self, total: int | None = None, *, drafted: bool = False) -> None:
        self.drafted = drafted
        self.rows = self.columns = self.start = self.number = 0
        self.learns = False
        self.edits: list[Acting] = []
        self._begun: int | None = (
            None  # the id of the module: itself would be a cycle where the pass never ends
        )
        self._total = total

    def begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the forward of the model, or of the language model in it, where that is what runs.

        Raises RoadError where it does not tell what it is given.
        """
        if self._begun is not None:
            return
        self._begun = id(module)
        given = (
            inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            if args
            else kwargs
        )
        tokens = next(
            (given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None),
            None,
        )
        if tokens is None:
            raise RoadError(
                f"{type(module).__name__} runs on neither input_ids nor inputs_embeds: its rows can't be told"
            )
        self.start = self._start_of(given, int(tokens.shape[1]))
        self.rows, self.columns = int(tokens.shape[0]), int(tokens.shape[1])
        self.number += 1

    def end(self, module: nn.Module, *_: Any) -> None:
        """After the forward that began the pass."""
        if id(module) == self._begun:
            self._begun = None
            self.check()

    def check(self) -> None:
        """Raises RoadError where an edit did not act in the pass that has ended."""
        if not self.number:
            raise RoadError(
                "the call went by the transformers model that is edited: expected a model that runs its own modules"
            )
        for edit in self.edits:
            edit.finish(self)

    def check_gradients(self, path: str) -> None:
        """Raises RoadError where a module runs without gradients in a call that wants some: they would be lost in silence."""
        if self.learns and not torch.is_grad_enabled():
            raise RoadError(
                f"{path} runs without gradients in a call that wants them (activation checkpointing of the reentrant kind, or a "
                "no_grad of the model's own): expected use_reentrant=False, no checkpointing, or torch.no_grad() around the call"
            )

    def _start_of(self, given: Mapping[str, Any], columns: int) -> int:
        if self._total is not None:
            if columns > self._total:
                raise RoadError(
                    f"a pass over {columns} columns in a call of {self._total}: expected those of the call"
                )
            return self._total - columns
        cache = next((given[name] for name in CACHES if given.get(name) is not None), None)
        if cache is None:
            return 0
        mask = given.get("attention_mask")
        if torch.is_tensor(mask) and mask.ndim == 2 and mask.shape[1] >= columns:
            return int(mask.shape[1]) - columns
        end = self.start + self.columns
        if self.number and getattr(cache, "is_compileable", False):
            return end  # a static cache counts on the device, which would be waited for
        held = cached_columns(given)
        if held or not self.number:
            return held or 0
        # Recurrent states tell no length and go on where the last pass ended; a model that leaves its cache empty runs all anew.
        return end if columns <= end else 0


def edited(
    model: nn.Module, edits: Iterable[Acting], passes: Passes, copies: list[Copy] | None = None
) -> nn.Module:
    """A view of the model whose forward passes carry the edits, each before the next at a module of several.

    copies: gets the copies that were made; not kept in `passes`, which they lead to.
    """
    passes.edits = list(edits)
    passes.learns = torch.is_grad_enabled() and any(edit.learns for edit in passes.edits)
    after: dict[nn.Module, list[After]] = {}
    for edit in passes.edits:
        for module, hook in edit.hooks(model, passes):
            after.setdefault(module, []).append(hook)
    inner: Any = inner_model(model)
    body = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    begins = {inner, body} if isinstance(body, nn.Module) else {inner}
    for each in begins:
        after.setdefault(each, []).append(passes.end)
    return view(model, after, {each: [passes.begin] for each in begins}, copies=copies)
