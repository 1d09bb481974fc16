"""Steps: every token takes the row of its own request's edits, however requests are cut and mixed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from roadint import RoadError
from roadint.engines.vllm import steps as steps_module
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.rows.served_table import ServedTable
from roadint.engines.vllm.rows.shards import Part, pieces_of
from roadint.engines.vllm.steps import Steps
from tests.engines.vllm.helpers import adapter, registry_of, road, serve, steps_of
from tests.helpers import WIDTH

TARGETS = {"q": 8, "k": 4}
PIECES = pieces_of("qk", list(TARGETS), [Part(width) for width in TARGETS.values()], 0, 1)
ASKED = [
    *(
        None,
        None,
        "a",
        "b",
        "c",
        "d",
        "0.5*a",
        "a + b",
        "a + c + d",
        "a + b + c + d + x",
        "e@two",
        "a - e@two",
    ),
    *("x", "2*x", "x + y@two", "a + x", "d - y@two", "all"),
]
MOST, TOKENS = 4, 24  # of a step


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Five positions at three layers, two of them at one site, and adapters."""
    whole = {"subspaces": {"a": "[0, d)"}}
    one = [
        road(0, 1, **whole),
        road(1, 2, subspaces={"b": "[0, d/2)"}, position="all", phase="both"),
        road(1, 3, subspaces={"c": "[d/2, d)"}, position="first(2)", phase="both"),
        road(2, 4, subspaces={"a": "[0, d/2)", "d": "[d/2, d)"}, position="last(3)"),
    ]
    two = [road(2, 5, subspaces={"e": "[0, d)"}, position="at(1)", phase="generated")]
    folder = tmp_path_factory.mktemp("served")
    return registry_of(
        plain=serve(folder / "one", *one, adapters=[adapter("x", TARGETS)]),
        two=serve(folder / "two", *two, adapters=[adapter("y", {"k": 4}, 2)]),
    )


@dataclass
class Request:
    """A request of an engine, and how many of its tokens are computed."""

    name: str
    resolved: Any
    prompt: int
    total: int
    computed: int = 0


def of_blocks(part: Any, strengths: dict[str, float]) -> Tensor:
    """The blocks of RoAd1, each a complex number `α^s e^{isθ}`."""
    s = torch.zeros(len(part.theta))
    for name in strengths.keys() & set(part.partition):
        s[part.partition[name].blocks] = strengths[name]
    return torch.polar(part.alpha.detach() ** s, part.theta.detach() * s)


def hidden_row(steps: Steps, request: Request, rank: int) -> Tensor | None:
    """Token by token: the product of the interventions whose positions select it."""
    row, edited = torch.ones(steps.hidden.places.blocks, dtype=torch.complex64), False
    by_fingerprint = {served.fingerprint: served for served in steps.registry.served.values()}
    for fingerprint, terms in (request.resolved or {"of": []})["of"]:
        strengths = dict(terms)
        for part in by_fingerprint[fingerprint].interventions:
            selects = part.position.edited(torch.tensor([[rank]]), torch.tensor([request.prompt]))
            if strengths.keys() & set(part.partition) and bool(selects):
                ((place, _),) = steps.hidden.at((part.layer, part.component))
                row[place.blocks] *= of_blocks(part, strengths)
                edited = True
    return row if edited else None


def linear_row(steps: Steps, request: Request) -> Tensor | None:
    """The product of the adapters, at q and k of one module, which lie end to end."""
    row, acts = torch.ones(sum(TARGETS.values()) // 2, dtype=torch.complex64), False
    by_fingerprint = {served.fingerprint: served for served in steps.registry.served.values()}
    for fingerprint, terms in (request.resolved or {"of": []})["of"]:
        for name, strength in terms:
            one = by_fingerprint[fingerprint].adapters_by_name.get(name)
            if one is None:
                continue
            turns = torch.polar(one.alpha.detach() ** strength, one.theta.detach() * strength)
            row[-len(turns) :] *= turns
            acts = True
    return row if acts else None


def check_table(table: ServedTable, expected: list[Tensor | None]) -> None:
    index = table.index.tolist()
    assert set(index[len(expected) :]) <= {-1}
    for slot, row in zip(index, expected, strict=False):
        assert (slot < 0) == (row is None)
        if row is not None:
            found = torch.view_as_complex(table.u[slot])
            torch.testing.assert_close(found, row, rtol=1e-5, atol=1e-5)
    edited = [number for number, slot in enumerate(index) if slot >= 0]
    assert table.step_tokens.tolist() == edited
    assert table.step_slots.tolist() == [index[number] for number in edited]
    assert table.busy == bool(edited)


def step(steps: Steps, batch: list[tuple[Request, int]]) -> None:
    """Run a step of requests with so many tokens each, and check what every token takes."""
    starts = np.array([request.computed for request, _ in batch], dtype=np.int32)
    counts = np.array([count for _, count in batch], dtype=np.int32)
    steps.fill([request.name for request, _ in batch], starts, counts)
    tokens = [
        (request, request.computed + number) for request, count in batch for number in range(count)
    ]
    check_table(steps.hidden_table, [hidden_row(steps, *token) for token in tokens])
    check_table(steps.linear_table, [linear_row(steps, request) for request, _ in tokens])
    for request, count in batch:
        request.computed += count


@given(data=st.data())
def test_rows_are_those_of_a_loop_over_tokens(registry: Registry, data: st.DataObject) -> None:
    """Whether a table has room for more than one step's rows, or each makes room for the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps_module, "_KEPT", data.draw(st.sampled_from([1, 4]), "kept"))
        steps = steps_of(registry, PIECES, MOST, TOKENS)
    running: dict[str, Request] = {}
    for _ in range(data.draw(st.integers(1, 8), "steps")):
        while len(running) < MOST and data.draw(st.booleans(), "comes"):
            name = data.draw(st.sampled_from([n for n in "pqrst" if n not in running]), "name")
            prompt = data.draw(st.integers(2, 12), "prompt")
            total = prompt + data.draw(st.integers(1, 6), "generated")
            resolved = registry.resolve(data.draw(st.sampled_from(ASKED), "compose"), 5)
            running[name] = Request(name, resolved, prompt, total)
            steps.add(name, resolved, prompt)
        if not running:
            continue
        order = data.draw(st.permutations(list(running)), "order")
        scheduled = order[: data.draw(st.integers(1, len(order)), "scheduled")]
        batch = []
        for name in scheduled:
            left = running[name].total - running[name].computed
            batch.append((running[name], data.draw(st.integers(1, min(left, 6)), "tokens")))
        step(steps, batch)
        for name in list(running):
            request = running[name]
            fate = data.draw(st.sampled_from(["on", "on", "on", "abort", "v1", "v2"]), "fate")
            if fate == "abort" or request.computed == request.total:
                del running[name]
                steps.remove(name)
            elif fate == "v1":  # preempted, and computed again, which the runner does not tell
                request.computed = 0
            elif fate == "v2":  # preempted: removed, and added as new, at what the cache has
                steps.remove(name)
                request.computed = data.draw(st.integers(0, request.computed), "cached")
                steps.add(name, request.resolved, request.prompt)
        assert len(steps) == sum(request.resolved is not None for request in running.values())
    for name in running:
        steps.remove(name)
    assert len(steps) == 0
    steps.fill(list("pqrst")[:MOST], np.zeros(MOST, np.int32), np.full(MOST, 3, np.int32))
    assert not steps.hidden_table.busy
    assert not steps.linear_table.busy
    assert set(steps.hidden_table.index.tolist()) | set(steps.linear_table.index.tolist()) == {-1}


def test_tables_keep_more_than_a_step_needs_where_rows_are_small(registry: Registry) -> None:
    wide = steps_of(registry, PIECES, MOST, 1000)
    for table, most in ((wide.hidden_table, MOST * wide.hidden.codes), (wide.linear_table, MOST)):
        assert len(table.u) == 4 * most
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps_module, "_KEPT_BYTES", 1)
        tight = steps_of(registry, PIECES, MOST, TOKENS)
    assert [len(tight.hidden_table.u), len(tight.linear_table.u)] == [TOKENS, MOST]


def test_a_name_that_comes_again_asks_for_something_else(registry: Registry) -> None:
    """As an aborted request whose id is used again at once."""
    steps = steps_of(registry, PIECES, MOST, TOKENS)
    for asked in ("a + x", "b", None, "x", "d"):
        request = Request("p", registry.resolve(asked, 5), 5, 9)
        steps.add("p", request.resolved, 5)
        step(steps, [(request, 5)])
        step(steps, [(request, 1)])
        step(steps, [(request, 1)])
    steps.remove("never came")


def test_a_trial_turns_nothing(registry: Registry) -> None:
    """Also between equal steps of adapters, which are not filled again."""
    steps = steps_of(registry, PIECES, MOST, TOKENS)
    request = Request("p", registry.resolve("a + x", 5), 5, 9)
    steps.add("p", request.resolved, 5)
    for _ in range(2):
        request.computed = 4
        step(steps, [(request, 1)])
        assert steps.hidden_table.busy
        assert steps.linear_table.busy
        steps.clear()
        assert not steps.hidden_table.busy
        assert not steps.linear_table.busy


def test_more_compositions_than_rows(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one step as many as there are requests; over time any number."""
    monkeypatch.setattr(steps_module, "_KEPT", 1)
    steps = steps_of(registry, PIECES, MOST, TOKENS)
    for batch in range(20):
        requests = []
        for number in range(MOST):
            asked = f"{1 + (3 * batch + number) % 17 / 10}*a + b + c + {1 + batch % 5}*x"
            requests.append(Request(f"{batch}-{number}", registry.resolve(asked, 5), 5, 9))
            steps.add(requests[-1].name, requests[-1].resolved, 5)
        step(steps, [(request, 6) for request in requests])
        for request in requests:
            steps.remove(request.name)
    assert len(steps.hidden_table.u) <= TOKENS
    assert len(steps.linear_table.u) == MOST


def test_an_unloaded_checkpoint_acts_in_the_requests_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roadint.engines.vllm import registry as module

    monkeypatch.setattr(module, "_GRACE", -1.0)
    served = serve(tmp_path, road(0, 1))
    registry = registry_of(plain=served)
    steps = steps_of(registry)
    request = Request("p", registry.resolve("a", 5), 5, 9)
    steps.add("p", request.resolved, 5)
    registry.unload("")
    registry.forget([])
    steps.fill(["p"], np.array([3]), np.array([2]))
    assert steps.hidden_table.step_tokens.tolist() == [1]
    with pytest.raises(RoadError, match="was unloaded"):
        steps.add("q", request.resolved, 5)
    assert len(steps) == 1


def test_a_checkpoint_without_a_place_is_refused(tmp_path: Path) -> None:
    served = [serve(tmp_path / str(layer), road(layer)) for layer in (0, 1)]
    steps = steps_of(registry_of(plain=served[0]))
    steps.check(served[0])
    with pytest.raises(RoadError, match="layer 1"):
        steps.check(served[1])


def test_tables_are_no_larger_than_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows are large; small ones are kept beyond it."""
    monkeypatch.setattr(steps_module, "_KEPT_BYTES", 0)
    parts = [road(0, subspaces={f"n{i}": "[0, d)"}, position=f"at({i})") for i in range(30)]
    steps = steps_of(registry_of(plain=serve(tmp_path, *parts)), requests=4, tokens=40)
    rows = 40  # 4 requests, each with up to 2^30 − 1 different sets of positions
    assert steps.bytes == rows * (WIDTH // 2) * 8  # of one site
    request = Request("p", steps.registry.resolve("all", 35), 35, 36)
    steps.add("p", request.resolved, 35)
    step(steps, [(request, 35)])
