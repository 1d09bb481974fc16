"""A call on a transformers model: its lowered rows as hooks of a view, through forward or generate."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from roadint.architecture.layers import check_recomputation
from roadint.engines.adapters import LoweredAdapters
from roadint.engines.call import Call
from roadint.engines.interventions import LoweredIntervention
from roadint.engines.transformers.generation import drafts
from roadint.engines.transformers.hidden_edits import HiddenEdits
from roadint.engines.transformers.linear_edits import LinearEdits
from roadint.engines.transformers.partial import Resumed
from roadint.engines.transformers.passes import Edits, Passes, edited
from roadint.engines.transformers.scoring import score
from roadint.engines.transformers.view import Copy, write_back

Scored = tuple[Int[Tensor, "2 tokens"], Int[Tensor, " tokens"]]
"""Rows and columns, and the labels that come after them."""


def edits_of(
    call: Call, interventions: Sequence[LoweredIntervention], adapters: LoweredAdapters | None
) -> list[Edits]:
    """What a call does, as edits of hidden states and edits at linear layers."""
    edits: list[Edits] = [HiddenEdits(interventions, call)] if interventions else []
    return edits if adapters is None else [*edits, LinearEdits(adapters)]


def run_forward(
    model: nn.Module,
    inputs: dict[str, Any],
    edits: Sequence[Edits] = (),
    columns: int = 0,
    *,
    resumed: Resumed | None = None,
    scored: Scored | None = None,
) -> Any:
    """The model's own forward with edits.

    Args:
        model: The caller's model, which stays as it is.
        inputs: Of its forward.
        edits: What acts; nothing by default: the base model.
        columns: Of the call, those in a cache included.
        resumed: Which of the lowest layers do not run, and what they would give.
        scored: Tokens whose negative log-likelihood is wanted instead of the output.

    Raises:
        RoadError: where an edit did not act.
    """
    plain = model if resumed is None else resumed.of(model)
    if not edits:
        return plain(**inputs) if scored is None else score(plain, inputs, *scored, plain=model)
    check_recomputation(model)
    copies: list[Copy] = []
    passes = Passes(columns)
    running = edited(plain, edits, passes, copies)
    if scored is None:
        output = running(**inputs)
    else:
        output = score(running, inputs, *scored, plain=model)
    passes.check()
    write_back(copies)
    return output


@torch.no_grad()
def run_generate(model: nn.Module, inputs: dict[str, Any], edits: Sequence[Edits]) -> Any:
    """The model's own generate with edits; compiled caches run uncompiled.

    Raises:
        RoadError: where an edit did not act.
    """
    copies: list[Copy] = []
    passes = Passes(drafted=drafts(model, inputs))
    running: Any = edited(model, edits, passes, copies)
    output = running.generate(**inputs, disable_compile=True)
    passes.check()
    write_back(copies)
    return output
