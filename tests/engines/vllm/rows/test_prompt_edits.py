"""Which tokens of a request are edited, however its row is cut, and what its blocks are keyed by."""

import itertools
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from roadint.engines.vllm.rows.plan import Plan
from roadint.engines.vllm.rows.prompt_edits import Chunk, PromptEdits, edited_in
from roadint.grammar.position import Position
from tests.engines.vllm.helpers import POSITIONS, adapter, code, plan_at, served_at

PLANS = st.lists(st.sampled_from(POSITIONS), min_size=1, max_size=4).map(
    lambda positions: plan_at(*positions)
)


@given(plan=PLANS, prompt_length=st.integers(3, 40), data=st.data())
def test_runs_are_those_of_a_loop_over_tokens(
    plan: Plan, prompt_length: int, data: st.DataObject
) -> None:
    edits = PromptEdits(plan, prompt_length)
    start = data.draw(st.integers(0, prompt_length + 10))
    stop = data.draw(st.integers(start, start + 15))
    runs = edits.runs(start, stop)
    found = {rank: of_run for first, last, of_run in runs for rank in range(first, last)}
    codes = {rank: code(plan, rank, prompt_length) for rank in range(start, stop)}
    assert found == {rank: of_rank for rank, of_rank in codes.items() if of_rank}
    for (_, stopped, before), (first, _, after) in itertools.pairwise(runs):
        assert stopped < first or (stopped == first and before != after)
    assert edits.reaches(start) or not runs


@given(
    requests=st.lists(
        st.tuples(PLANS, st.integers(3, 40), st.integers(0, 45), st.integers(0, 20)), max_size=6
    )
)
def test_a_step_finds_the_tokens_of_all_its_requests(
    requests: list[tuple[Plan, int, int, int]],
) -> None:
    chunks, expected, first = [], [], 0
    for number, (plan, prompt_length, start, count) in enumerate(requests):
        chunks.append(Chunk(PromptEdits(plan, prompt_length), start, start + count, first))
        codes = [code(plan, rank, prompt_length) for rank in range(start, start + count)]
        expected += [(first + i, number, found) for i, found in enumerate(codes) if found]
        first += count
    edited = edited_in(chunks)
    found = zip(*(part.tolist() for part in edited), strict=True)
    assert list(found) == expected
    assert all(part.dtype == np.int64 for part in edited)


# What blocks are keyed by.

BLOCK = 4


def chain(edits: PromptEdits, tokens: list[int]) -> list[Any]:
    """For every whole block, what the prefix cache knows it by: all tokens and keys up to it."""
    blocks = range(BLOCK, len(tokens) + 1, BLOCK)
    keys = [edits.key_of_block(stop - BLOCK, stop) for stop in blocks]
    return [(tuple(tokens[:stop]), tuple(keys[: stop // BLOCK])) for stop in blocks]


def acted(edits: PromptEdits, tokens: list[int]) -> list[Any]:
    """A simple model: the KV of a block depends on its tokens, and on all edits up to its end."""
    plan = edits.plan
    adapters = plan.adapter_key
    of_token = [
        tuple(
            (edit.served.fingerprint, edit.index, edit.terms)
            for edit in plan.edits
            if bool(
                edit.position.edited(torch.tensor([[rank]]), torch.tensor([edits.prompt_length]))
            )
        )
        for rank in range(len(tokens))
    ]
    blocks = range(BLOCK, len(tokens) + 1, BLOCK)
    return [(tuple(tokens[:stop]), tuple(of_token[:stop]), adapters) for stop in blocks]


ADAPTERS = served_at(
    fingerprint="adapters", adapters=[adapter("x", {"q": 8}), adapter("y", {"q": 8}, 2)]
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    positions = draw(st.lists(st.sampled_from(POSITIONS), max_size=2))
    fingerprint = f"{draw(st.sampled_from('fg'))} of {positions}"
    strength = draw(st.sampled_from([1.0, 2.0]))
    plan = plan_at(*positions, fingerprint=fingerprint, strength=strength)
    terms = draw(st.sampled_from([(), (("x", 1.0),), (("x", 2.0),), (("x", 1.0), ("y", 1.0))]))
    return Plan(plan.hidden, ((ADAPTERS, terms),) if terms else ())


@st.composite
def requests(draw: st.DrawFn, plan: Plan | None = None) -> tuple[PromptEdits, list[int]]:
    plan = draw(plans()) if plan is None else plan
    prompt_length = draw(st.integers(3, 14))
    tokens = draw(st.integers(prompt_length, 18))
    return PromptEdits(plan, prompt_length), [7] * tokens  # alike, so that prompts share all


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """Two requests, which often ask for the same."""
    plan = draw(plans())
    return draw(requests(plan)), draw(requests(draw(st.sampled_from([plan, None]))))


@given(pair=pairs())
def test_blocks_whose_values_differ_never_have_the_same_key(pair: Any) -> None:
    first, second = pair
    for key, other in itertools.product(
        zip(chain(*first), acted(*first), strict=True),
        zip(chain(*second), acted(*second), strict=True),
    ):
        assert key[0] != other[0] or key[1] == other[1]


@given(request=requests())
def test_blocks_before_the_first_edit_are_everybodys(
    request: tuple[PromptEdits, list[int]],
) -> None:
    edits, tokens = request
    for stop, (_, of_token, adapters) in zip(
        range(BLOCK, len(tokens) + 1, BLOCK), acted(edits, tokens), strict=True
    ):
        key = edits.key_of_block(stop - BLOCK, stop)
        edited = any(of_token[stop - BLOCK :])
        assert (key is not None) == (edited or bool(adapters and stop == BLOCK))


def test_a_prompt_that_grows_shares_what_was_edited_alike() -> None:
    """A conversation's next turn finds the blocks of the turn before."""
    plan = plan_at(Position.parse("all", "both"))
    first, second = PromptEdits(plan, 9), PromptEdits(plan, 14)
    assert chain(first, [7] * 12) == chain(second, [7] * 12)


def test_prompts_that_end_elsewhere_share_the_beginning_only() -> None:
    plan = plan_at(Position.parse("last(2)"))
    first, second = PromptEdits(plan, 16), PromptEdits(plan, 18)
    of_first, of_second = chain(first, [7] * 16), chain(second, [7] * 16)
    assert of_first[:3] == of_second[:3]
    assert of_first[3] != of_second[3]


def test_prompts_that_end_elsewhere_in_a_block_share_it_not() -> None:
    plan = plan_at(Position.parse("last"))
    first, second = PromptEdits(plan, 14), PromptEdits(plan, 15)
    of_first, of_second = chain(first, [7] * 16), chain(second, [7] * 16)
    assert of_first[:3] == of_second[:3]
    assert of_first[3] != of_second[3]


def test_a_long_prompt_keeps_a_few_bytes() -> None:
    edits = PromptEdits(plan_at(Position.parse("all"), Position.parse("last(5)")), 100_000)
    assert len(edits.runs(0, 200_000)) == 2
    kept = [value for value in vars(edits).values() if hasattr(value, "itemsize")]
    assert sum(value.itemsize * len(value) for value in kept) < 100
