"""Hidden states from one forward pass into another: what `collect` and `interchange` do."""

from collections.abc import Callable, Sequence
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
"""For each intervention and each row the hidden states at some tokens."""


def read_states(
    model: nn.Module,
    interventions: Interventions,
    inputs: dict[str, Any],
    call: Call,
    lowered: Sequence[LoweredIntervention] = (),
) -> States:
    """The hidden states at the sites of interventions, where the call's positions or theirs say.

    Args:
        model: What runs, without a cache.
        interventions: Where to read.
        inputs: Of the model's forward.
        call: Whose tokens are read.
        lowered: What acts in the pass; nothing by default.

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


def source_of_each(interventions: Interventions, source: Any) -> list[Any]:
    """For each interchange the prompts that it takes from.

    Args:
        interventions: Of which some take a source.
        source: Prompts for all of them, or a list of prompts, tokens or None, one for each.

    Raises:
        RoadError: where none takes a source, or the list is of another length.
    """
    count = sum(intervention.takes_source for intervention in interventions)
    if not count:
        raise RoadError("no intervention takes a source: expected a RoadInterchange among them")
    if not isinstance(source, (str, dict, list, tuple)) and not hasattr(source, "keys"):
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
    """What each intervention takes into the base, read from its source.

    Args:
        interventions: Of which some take a source.
        prompts: For each of those what it takes from; None where it takes nothing.
        mode: "parallel" reads all sources unedited, "serial" each with what the one before it gave
            put in place.
        read: Prompts, and what each intervention takes in their pass, to the states at each site.

    Raises:
        RoadError: for an unknown mode.
    """
    check_known("mode", mode, get_args(Mode))
    nothing: list[Source | None] = [None] * len(interventions)
    taken, states, last = nothing, None, None
    takers = [index for index, each in enumerate(interventions) if each.takes_source]
    for index, source in zip(takers, prompts, strict=True):
        if source is None:
            continue
        if states is None or mode == "serial" or source is not last:
            states = read(source, taken if mode == "serial" else nothing)
        last = source
        taken = list(nothing if mode == "serial" else taken)
        taken[index] = states[index]
    return tuple(taken)
