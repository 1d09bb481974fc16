"""The edit of one call: which rows, which tokens, which rotations; and the hooks that carry it into the model.

Hooks are added for one call and removed after it, also after an exception. A hook acts only in the context (thread or task) that
made its edit, so calls that overlap on one model do not see each other.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from roadint.composition import Composition
from roadint.layers import cached_columns
from roadint.site import Rows, SubspaceIntervention

_active: ContextVar[tuple["Edit", ...]] = ContextVar("roadint_active_edits", default=())
_registering = threading.Lock()  # torch numbers its hooks without one


class Edit:
    """What one forward or generate call changes.

    interventions: of the whole model, in order. compositions: one a row.
    kept: [rows, columns] bool or int, the tokens of the call that are no padding, those in a cache included.
    prompt_length: [rows] int, how many kept tokens are the prompt; all of them by default.
    learning: one a row, the compositions whose blocks get the row's gradient; all blocks by default.
    """

    def __init__(
        self,
        interventions: Sequence[SubspaceIntervention],
        compositions: Sequence[Composition],
        kept: Tensor,
        prompt_length: Tensor | None = None,
        learning: Sequence[Composition] | None = None,
    ) -> None:
        self.columns = kept.shape[1]
        kept = kept.bool()
        self._rank = (kept.long().cumsum(dim=1) - 1).masked_fill(~kept, -1)
        self._kept_count = kept.sum(dim=1)
        self._prompt_length = self._kept_count if prompt_length is None else prompt_length.to(kept.device)
        self._start = 0
        self._sites: list[tuple[SubspaceIntervention, Rows, Tensor]] = []
        for intervention in interventions:
            strengths = intervention.strengths(compositions)
            acting = torch.tensor(
                [any(name in intervention.partition for name, _ in composition.terms) for composition in compositions]
            )
            if intervention.position.kind == "at" and bool(acting.any()):
                intervention.position.check(int(self._prompt_length[acting.to(kept.device)].min()))
            learned = None if learning is None else intervention.strengths(learning) != 0
            self._sites.append((intervention, intervention.rows(strengths, learned), acting.to(kept.device)))

    @contextmanager
    def applied(self, model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Carry the edit into every forward pass of `model` in this context; `modules` are the sites, one an intervention."""
        handles = []
        token = _active.set((*_active.get(), self))
        try:
            with _registering:
                handles.append(model.register_forward_pre_hook(self._on_forward, with_kwargs=True))
                for index, module in enumerate(modules):
                    handles.append(module.register_forward_hook(self._hook_of(index)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            _active.reset(token)

    def _on_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> None:
        """Note where this pass starts: how many columns are in the cache already."""
        if self in _active.get():
            self._start = cached_columns(kwargs or {})

    def _hook_of(self, index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if self not in _active.get():
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            edited = self._edited(index, hidden)
            if edited is None:
                return None
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return hook

    def _edited(self, index: int, hidden: Tensor) -> Tensor | None:
        """The edited hidden states [rows, columns, width], or None where this pass holds no token to edit."""
        intervention, edits, acting = self._sites[index]
        start, stop = self._start, self._start + hidden.shape[1]
        if start >= self.columns and not intervention.position.after_prompt:
            return None
        where = intervention.position.edited(self._rank_of(start, stop), self._prompt_length) & acting[:, None]
        # Beams and returned sequences repeat each row in place.
        copies = hidden.shape[0] // where.shape[0]
        rows, columns = where.repeat_interleave(copies, dim=0).to(hidden.device).nonzero(as_tuple=True)
        if not len(rows):
            return None
        chosen = edits.row(rows // copies)
        return hidden.index_put((rows, columns), intervention.edit(hidden[rows, columns], chosen))

    def _rank_of(self, start: int, stop: int) -> Tensor:
        """[rows, stop − start]: the rank of each token of the pass; columns past the call's own are generated ones."""
        given = self._rank[:, start:stop]
        new = torch.arange(max(start, self.columns), max(stop, self.columns), device=given.device) - self.columns
        return torch.cat([given, self._kept_count[:, None] + new], dim=1)
