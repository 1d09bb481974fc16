"""Calls on a transformers model: parsed, checked and lowered once, then run on a view of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from roadint.architecture.layers import text_config
from roadint.architecture.properties import check_recomputation, input_device
from roadint.engines.attached import Attached, Compose, Lowered
from roadint.engines.call import Call, Source
from roadint.engines.interventions import Interventions
from roadint.engines.transformers.compiled.compiled import Compiled
from roadint.engines.transformers.generation import check_generation, drafts, with_settings
from roadint.engines.transformers.hidden_edits import HiddenEdits
from roadint.engines.transformers.inputs import (
    Prompts,
    check_prompt_length,
    check_scored,
    check_unpacked,
    kept_tokens,
    shape_of,
    with_mask,
)
from roadint.engines.transformers.linear_edits import LinearEdits
from roadint.engines.transformers.partial import Resumed
from roadint.engines.transformers.passes import Edits, Passes, edited
from roadint.engines.transformers.scoring import score
from roadint.engines.transformers.states import Mode, States, gather, read_states
from roadint.engines.transformers.view import Copy, write_back
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import ALL, Composition
from roadint.grammar.position import Position, PositionLike, Tokens, parse_positions

Scored = tuple[Int[Tensor, "2 tokens"], Int[Tensor, " tokens"]]
"""The rows and columns of tokens, and the labels that follow them."""


def run_forward(
    model: nn.Module,
    attached: Attached,
    inputs: dict[str, Any],
    compose: Compose,
    *,
    learning: Compose = ALL,
    prompt_length: Int[Tensor, " rows"] | None = None,
    positions: PositionLike | None = None,
    sources: Sequence[Source | None] | None = None,
    resumed: Resumed | None = None,
    scored: Scored | None = None,
    compiled: Compiled | None = None,
) -> Any:
    """The model's own forward, with a composition a row.

    Args:
        model: The caller's model, which is not changed.
        attached: Its interventions and adapters.
        inputs: The arguments of the model's forward, by name.
        compose: As in `RoadModel.forward`.
        learning: As in `RoadModel.forward`.
        prompt_length: As in `RoadModel.forward`.
        positions: As in `RoadModel.forward`.
        sources: As in `RoadModel.forward`.
        resumed: As in `RoadModel.forward`.
        scored: Tokens whose negative log-likelihood is returned instead of the model's output.
        compiled: Runs what it can as a compiled graph.

    Raises:
        RoadError: for bad input, and where an edit did not act.
    """
    rows, columns = shape_of(inputs)
    if scored is not None:
        check_scored(scored, rows, columns, int(text_config(model).vocab_size))
    if resumed is not None and not isinstance(resumed, Resumed):
        raise RoadError(f"resumed={quoted(resumed)}: expected a Resumed, or None")
    compositions = attached.parse(compose, rows)
    learned = attached.parse_learning(learning, rows)
    plain = model if resumed is None else resumed.of(model)
    if not any(composition.terms for composition in compositions):
        return _output(plain, inputs, scored, model)
    check_recomputation(model)
    call = _call(model, inputs, positions, prompt_length)
    acting = {name for composition in compositions for name, _ in composition.terms}
    edits = [edit for edit in attached.interventions if not acting.isdisjoint(edit.partition)]
    if any(_needs_a_prompt(call.positions or edit.position) for edit in edits):
        check_unpacked(inputs)
    call = replace(call, compositions=compositions, learning=learned, sources=_listed(sources))
    if compiled is not None and resumed is None and scored is None:
        output = compiled.forward(model, attached, call, inputs)
        if output is not NotImplemented:
            return output
    acts = _edits(call, attached.lower(call))
    with _running(plain, acts, Passes(call.columns)) as running:
        return _output(running, inputs, scored, model)


@torch.no_grad()
def run_generate(
    model: nn.Module,
    attached: Attached,
    inputs: dict[str, Any],
    compose: Compose,
    sources: Sequence[Source | None] | None = None,
    compiled: Compiled | None = None,
) -> Any:
    """The model's own `generate`, with a composition a row; what a caller compiled runs uncompiled.

    Args:
        model: The caller's model, which is not changed.
        attached: Its interventions and adapters.
        inputs: The arguments of the model's `generate`, by name.
        compose: As in `RoadModel.forward`.
        sources: As in `RoadModel.forward`.
        compiled: Runs what it can as a compiled graph.

    Raises:
        RoadError: for bad input, and where an edit did not act.
    """
    compositions = attached.parse(compose, shape_of(inputs)[0])
    if not any(composition.terms for composition in compositions):
        return model.generate(**inputs)  # type: ignore[operator]
    check_generation(model, inputs)
    inputs = with_mask(inputs, model, input_device(model))
    kept = inputs["attention_mask"].bool()
    call = Call(compositions, kept, sources=_listed(sources), generates=True)
    drafted = drafts(model, inputs)
    if compiled is not None:
        output = compiled.generate(model, attached, call, inputs, drafted=drafted)
        if output is not NotImplemented:
            return output
    edits = _edits(call, attached.lower(call))
    with _running(model, edits, Passes(drafted=drafted)) as running:
        uncompiled = with_settings(inputs, {"disable_compile": True})
        return running.generate(**uncompiled)  # type: ignore[operator]


@torch.no_grad()
def run_collect(
    model: nn.Module,
    interventions: Interventions,
    inputs: dict[str, Any],
    positions: PositionLike | None,
) -> States:
    """The model's own hidden states at the sites of interventions.

    Raises:
        RoadError: for bad input.
    """
    call = _call(model, inputs, positions)
    return read_states(model, interventions, inputs, call)


def read_sources(
    model: nn.Module,
    attached: Attached,
    compose: Compose,
    prompts: Sequence[Prompts | None],
    inputs_of: Callable[[Prompts], dict[str, Any]],
    rows: int,
    mode: Mode,
    positions: PositionLike | None,
    source_positions: PositionLike | None,
) -> tuple[Source | None, ...]:
    """Run the sources of an interchange, and read the states that interventions take from them.

    Args:
        model: The model, which is not changed.
        attached: Its interventions; in serial mode those that take a source act.
        compose: The compositions of the base.
        prompts: For each intervention that takes a source, its prompts; None where it takes none.
        inputs_of: Prompts → the inputs of the model's forward.
        rows: How many rows the base has.
        mode: "parallel" or "serial", as in `RoadModel.interchange`.
        positions: Where states are put into the base.
        source_positions: Where states are taken from; by default as `positions`.

    Raises:
        RoadError: for bad input.
    """
    interventions = attached.interventions
    compositions = [_of_takers(row, interventions) for row in attached.parse(compose, rows)]

    def read(source: Prompts, taken: Sequence[Source | None]) -> States:
        inputs, lowered = inputs_of(source), []
        if any(states is not None for states in taken):
            acting = _call(model, inputs, positions)
            acting = replace(acting, compositions=tuple(compositions), sources=tuple(taken))
            lowered = interventions.lower(acting)
        reading = _call(model, inputs, positions if source_positions is None else source_positions)
        return read_states(model, interventions, inputs, reading, lowered)

    return gather(interventions, prompts, mode, read)


def _call(
    model: nn.Module,
    inputs: Mapping[str, Any],
    positions: PositionLike | None = None,
    prompt_length: Tensor | None = None,
) -> Call:
    """A call without compositions: its tokens and positions."""
    kept = kept_tokens(inputs, model, input_device(model))
    length = check_prompt_length(prompt_length, kept)
    chosen = None if positions is None else parse_positions(positions)
    return Call((), kept.bool(), length, positions=chosen)


def _needs_a_prompt(position: Position | Tokens) -> bool:
    """Whether where an edit acts depends on where the prompt begins and ends."""
    return not isinstance(position, Tokens) and position.kind != "all"


def _edits(call: Call, lowered: Lowered) -> list[Edits]:
    edits: list[Edits] = []
    if lowered.interventions:
        edits.append(HiddenEdits(lowered.interventions, call))
    if lowered.adapters is not None:
        edits.append(LinearEdits(lowered.adapters))
    return edits


@contextmanager
def _running(model: nn.Module, edits: Sequence[Edits], passes: Passes) -> Iterator[nn.Module]:
    """A view of the model that carries the edits.

    At the end of the call every edit has acted in the last pass too, and the model has what its
    forward noted on itself.
    """
    copies: list[Copy] = []
    yield edited(model, edits, passes, copies)
    passes.check()
    write_back(copies)


def _output(
    running: nn.Module, inputs: dict[str, Any], scored: Scored | None, model: nn.Module
) -> Any:
    if scored is None:
        return running(**inputs)
    return score(running, inputs, *scored, plain=model)


def _listed(sources: Any) -> tuple[Source | None, ...] | None:
    if sources is None or isinstance(sources, tuple):
        return sources
    if not isinstance(sources, list):
        raise RoadError(
            f"sources {quoted(sources)}: expected a list, for each intervention what collect "
            "returns, or None"
        )
    return tuple(sources)


def _of_takers(composition: Composition, interventions: Interventions) -> Composition:
    """The part of a composition that names subspaces of interchanges."""
    names = {name for edit in interventions if edit.takes_source for name in edit.partition}
    return Composition(tuple(term for term in composition.terms if term[0] in names))
