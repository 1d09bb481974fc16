"""Hidden states that `collect` returns, and that `interchange` takes from its sources."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from roadint.engines.call import Call, Source
from roadint.engines.interventions import Interventions, LoweredIntervention
from roadint.engines.transformers.hidden_edits import HiddenEdits, Reading, SiteTokens
from roadint.engines.transformers.partial import Enough
from roadint.engines.transformers.passes import Edits, Passes, edited
from roadint.errors import RoadError, check_known, quoted
from roadint.grammar.position import Position, Tokens

Mode = Literal["parallel", "serial"]
States = list[list[Float[Tensor, "tokens width"]]]
"""For each intervention and each row, the hidden states at some tokens."""


def read_states(
    model: nn.Module,
    interventions: Interventions,
    inputs: dict[str, Any],
    call: Call,
    lowered: Sequence[LoweredIntervention] = (),
) -> States:
    """The hidden states at the sites of interventions, at the call's positions or their own.

    Args:
        model: The model, which runs without a cache.
        interventions: The sites and positions to read at.
        inputs: The arguments of the model's forward.
        call: The tokens.
        lowered: The interventions that act in the pass; none by default.

    Raises:
        RoadError: where a position is outside of a row.
    """
    everywhere = torch.ones(len(call.kept), dtype=torch.bool, device=call.kept.device)
    tokens = []
    for intervention, path in zip(interventions, interventions.paths, strict=True):
        position: Position | Tokens = call.positions or intervention.position
        position.check(call.prompt_end)
        where = (path, intervention.layer, intervention.width, position)
        tokens.append(SiteTokens(*where, everywhere, call))
    reading = Reading(tokens)
    edits: list[Edits] = [HiddenEdits(lowered, call)] if lowered else []
    with suppress(Enough):
        edited(model, [*edits, reading], Passes(call.columns))(**inputs, use_cache=False)
    return reading.states


def sources_of(interventions: Interventions, source: Any) -> list[Any]:
    """For each interchange, the prompts that it takes from.

    Args:
        interventions: Those of the model.
        source: Prompts for all interchanges; or a list of prompts, tokens or None, one for each.

    Raises:
        RoadError: where no intervention takes a source, or the list has another length.
    """
    count = sum(intervention.takes_source for intervention in interventions)
    if not count:
        raise RoadError("no intervention takes a source: expected a RoadInterchange among them")
    if not isinstance(source, (str, Mapping, list, tuple)):
        raise RoadError(
            f"source {quoted(source)}: expected prompts, or for each interchange prompts, tokens "
            "or None"
        )
    is_list = isinstance(source, (list, tuple))
    if not is_list or all(isinstance(prompt, str) for prompt in source):
        return [source] * count
    if len(source) != count:
        raise RoadError(
            f"{len(source)} sources for {count} interchanges: expected one each, or prompts for "
            "all of them"
        )
    return list(source)


def gather(
    interventions: Interventions,
    prompts: Sequence[Any],
    mode: Mode,
    read: Callable[[Any, Sequence[Source | None]], States],
) -> tuple[Source | None, ...]:
    """For each intervention, the states that it takes into the base.

    Args:
        interventions: Those of the model.
        prompts: For each interchange, what it takes from; None where it takes nothing.
        mode: "parallel" reads all sources unedited; "serial" runs every source with the states of
            the one before it put in.
        read: (prompts, the sources of all interventions) → the states at every site.

    Raises:
        RoadError: for an unknown mode.
    """
    check_known("mode", mode, get_args(Mode))
    nothing: list[Source | None] = [None] * len(interventions)
    taken, states, last = nothing, None, None
    takers = [index for index, edit in enumerate(interventions) if edit.takes_source]
    for index, source in zip(takers, prompts, strict=True):
        if source is None:
            continue
        if states is None or mode == "serial" or source is not last:
            states = read(source, taken if mode == "serial" else nothing)
        last = source
        taken = list(nothing if mode == "serial" else taken)
        taken[index] = states[index]
    return tuple(taken)
