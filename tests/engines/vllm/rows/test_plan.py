"""What acts in a request: its edits by code, its keys, and what a worker could not compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roadint import RoadError
from roadint.engines.vllm.rows.hidden_rows import HiddenRows
from roadint.engines.vllm.rows.linear_rows import LinearRows
from roadint.engines.vllm.rows.plan import MOST_POSITIONS, Plan
from roadint.engines.vllm.rows.prompt_edits import PromptEdits
from roadint.engines.vllm.rows.shards import Part, pieces_of
from roadint.grammar.position import Position
from tests.engines.vllm.helpers import (
    adapter,
    plan_at,
    plan_of,
    registry_of,
    road,
    serve,
    served_at,
)
from tests.helpers import WIDTH


def test_which_edits_act_at_a_code() -> None:
    last, everywhere = Position.parse("last"), Position.parse("all", "both")
    plan = plan_at(last, everywhere, last)
    assert plan.positions == (last, everywhere)
    for at in range(4):
        listed = [edit.position for edit in plan.edits_of(at)]
        assert listed == [p for p in (last, everywhere, last) if p in listed]
        assert set(listed) == {p for bit, p in enumerate(plan.positions) if at >> bit & 1}


def test_a_subspace_that_is_not_asked_for_has_no_edit() -> None:
    served = served_at(Position.parse("last"), Position.parse("all", "both"))
    plan = Plan(((served, (("n0", 1.0),)),), ())
    assert [edit.index for edit in plan.edits] == [0]
    assert not plan.after_prompt
    assert not PromptEdits(plan, 10).reaches(10)


def test_as_many_positions_as_a_code_has_bits(tmp_path: Path) -> None:
    """A bit more would fall out of the code, and its edit would not act."""

    def checkpoint(count: int) -> Any:
        parts = [
            road(0, index, position=f"at({index})", subspaces={f"n{index}": "[0, d)"})
            for index in range(count)
        ]
        return registry_of(plain=serve(tmp_path / str(count), *parts))

    plan = plan_of(checkpoint(MOST_POSITIONS), "all")
    codes = plan.codes(np.arange(100), np.full(100, 100))
    assert codes.tolist() == [1 << rank for rank in range(MOST_POSITIONS)] + [0] * (
        100 - MOST_POSITIONS
    )
    registry = checkpoint(MOST_POSITIONS + 1)
    assert plan_of(registry, "n0 + n62").edits
    with pytest.raises(RoadError, match="63 different positions: expected at most 62"):
        registry.resolve("all", 100)


def test_the_same_checkpoint_twice_acts_twice(tmp_path: Path) -> None:
    """As the one checkpoint that it is at the sum of the strengths; at a sum of 0 not at all."""
    served = serve(tmp_path, road(), adapters=[adapter("x", {"q": 8})])
    registry = registry_of(one=served, two=served)
    for name in "ax":
        once, twice, sum_ = (
            plan_of(registry, text)
            for text in (f"{name}@one", f"{name}@one + 0.5*{name}@two", f"1.5*{name}@two")
        )
        assert (once.hidden_key, once.adapter_key) != (twice.hidden_key, twice.adapter_key)
        assert (sum_.hidden_key, sum_.adapter_key) == (twice.hidden_key, twice.adapter_key)
        assert registry.resolve(f"{name}@one - {name}@two", 5) is None
    hidden = HiddenRows([served], (), WIDTH)
    row = hidden.rows([(plan_of(registry, "a@one + b@two"), 1)])
    both = hidden.rows([(plan_of(registry, "a@one + b@one"), 1)])
    torch.testing.assert_close(row.u, both.u)


def test_keys_say_what_acts(tmp_path: Path) -> None:
    one = serve(tmp_path / "one", road(seed=1), adapters=[adapter("x", {"q": 8})])
    two = serve(tmp_path / "two", road(seed=2), adapters=[adapter("x", {"q": 8}, 2)])
    registry = registry_of(one=one, two=two)
    asked = [
        *("a@one", "b@one", "0.5*a@one", "a@one + b@one", "a@one + a@two", "a@two"),
        *("x@one", "0.5*x@one", "x@two", "x@one + x@two", "a@one + x@one", "a@two + x@two"),
    ]
    plans = [plan_of(registry, text) for text in asked]
    keys = {(plan.hidden_key, plan.adapter_key) for plan in plans}
    assert len(keys) == len(asked)
    assert plan_of(registry, {"a@one": 1, "x@one": 1.0}).hidden_key == plans[0].hidden_key
    assert {*plans[4].fingerprints} == {one.fingerprint, two.fingerprint}


# A worker that raises takes the engine with it: what it could not compute is refused before.

BIG = 1e20


def many(kind: str, tmp_path: Path) -> Any:
    """Two checkpoints whose scales are numbers, and whose product is none."""
    found = {}
    for label, scale in (("one", BIG), ("two", 10 * BIG)):
        if kind == "adapters":
            big = adapter("x", {"q": 8})
            big.alpha.data.fill_(scale)
            found[label] = serve(tmp_path / label, adapters=[big])
        else:
            part = road(subspaces={"x": "[0, d)"}, variant=kind)
            part.alpha.data.fill_(scale)
            found[label] = serve(tmp_path / label, part)
    return registry_of(**found)


@pytest.mark.parametrize("kind", ["adapters", "road_1"])
def test_products_that_overflow_are_refused(kind: str, tmp_path: Path) -> None:
    registry = many(kind, tmp_path)
    assert registry.resolve("x@one", 5)
    with pytest.raises(RoadError, match=r"'x@one \+ x@two' multiply to 1e\+41: expected smaller"):
        registry.resolve("x@one + x@two", 5)
    assert registry.resolve("x@one - x@two", 5)


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_strengths_at_which_a_scale_is_too_large_are_refused(variant: Any, tmp_path: Path) -> None:
    part, one = road(variant=variant), adapter("x", {"q": 8}, variant=variant)
    part.alpha.data.fill_(10.0)
    one.alpha.data.fill_(10.0)
    registry = registry_of(plain=serve(tmp_path, part, adapters=[one]))
    for name in ("a", "x"):
        assert registry.resolve(f"6*{name}", 5)
        with pytest.raises(RoadError, match="becomes 1e\\+07"):
            registry.resolve(f"7*{name}", 5)


def test_a_worker_computes_what_the_front_accepts(tmp_path: Path) -> None:
    """In inference mode, as vLLM's workers do, where all values are looked at."""
    part, one = road(variant="road_4"), adapter("x", {"q": 8}, variant="road_2")
    served = serve(tmp_path, part, adapters=[one])
    pieces = pieces_of("q", ["q"], [Part(8)], 0, 1)
    hidden, linear = (
        HiddenRows([served], (), WIDTH),
        LinearRows([served], pieces, {"q": 8}, reserve=False),
    )
    plan = plan_of(registry_of(plain=served), "-3*a + 9*b - 4*x")
    with torch.inference_mode():
        for row in (hidden.rows([(plan, 1)]), linear.rows([plan])):
            assert row.v is not None
            assert row.u.isfinite().all()
            assert row.v.isfinite().all()


def test_blocks_that_no_subspace_holds_do_not_count(tmp_path: Path) -> None:
    """Their scales never act, whatever they are."""
    one = adapter("x", {"q": 8}, subspace="[0, d/2)")
    one.alpha.data[:] = torch.tensor([0.5, 2.0, 0.0, 1e30])
    registry = registry_of(plain=serve(tmp_path, adapters=[one]))
    for strength in (-19, -1, 1, 19):
        assert registry.resolve(f"{strength}*x", 5)
