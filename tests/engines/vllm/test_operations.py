"""The operations on a CPU: dense edits of the tokens that are edited, all others bit for bit."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from roadint import RoadError
from roadint.engines.vllm import operations
from roadint.engines.vllm.operations import activate, edit, turn_output
from roadint.engines.vllm.rows.shards import Part, pieces_of
from roadint.engines.vllm.steps import Steps
from tests.engines.vllm.helpers import (
    adapter,
    armed_of,
    dense_edit,
    dense_target,
    registry_of,
    road,
    serve,
    steps_of,
)
from tests.helpers import WIDTH

VARIANTS: list[Any] = ["road_1", "road_2", "road_4"]
DTYPES = [torch.float32, torch.bfloat16]
HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}
Tokens = list[Tensor | None]
"""For every token of a step the matrix that it is multiplied by, or None."""


def filled(steps: Steps, requests: list[tuple[str | None, int, int, int]]) -> None:
    """A step of requests: what they ask for, their prompts, ranks of first tokens, tokens."""
    for number, (asked, prompt, _, _) in enumerate(requests):
        steps.add(str(number), steps.registry.resolve(asked, prompt), prompt)
    _, _, starts, counts = zip(*requests, strict=True)
    steps.fill([str(n) for n in range(len(requests))], np.array(starts), np.array(counts))
    activate(armed_of(steps))


def check(before: Tensor, after: Tensor, added: Tensor | None, matrices: Tokens) -> None:
    """`after` is M (before + added) − added for tokens with a matrix M, and `before` for others."""
    assert len(before) == len(after) == len(matrices)
    rest = torch.zeros_like(before, dtype=torch.float64) if added is None else added.double()
    for token, matrix in enumerate(matrices):
        if matrix is None:
            assert after[token].equal(before[token]), f"token {token}"
            continue
        state = before[token].double() + rest[token]
        expected = matrix @ state - rest[token]
        exact = before.dtype is torch.float32
        tolerance = 2e-5 if exact else 2**-8  # half a step of bfloat16, and what it rounded before
        scale = expected.abs() + (matrix.abs() @ state.abs() if exact else 0)
        error = (after[token].double() - expected).abs()
        assert bool((error <= tolerance * scale + 1e-5).all()), f"token {token}: {error.max()}"
        assert not after[token].equal(before[token])


BASES: dict[str, dict[str, Any]] = {
    "adjacent": {},
    "half": {"pairing": "half"},
    "groups": {"pairing": 8},
    "random": {"basis": "random", "basis_seed": 2},
    "hadamard": {"basis": "hadamard", "pairing": 4},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("residual", [False, True])
def test_hidden_states(
    dtype: torch.dtype, variant: Any, basis: str, residual: bool, tmp_path: Path
) -> None:
    part = road(1, variant=variant, subspaces=HALVES, position="last(2)", **BASES[basis])
    steps = steps_of(registry_of(plain=serve(tmp_path, part)))
    filled(
        steps,
        [("a", 5, 0, 5), (None, 3, 0, 3), ("a - 0.5*b", 6, 3, 3), ("a", 9, 9, 1), ("b", 2, 1, 1)],
    )
    a, b = dense_edit(part, {"a": 1}), dense_edit(part, {"b": 1})
    both = dense_edit(part, {"a": 1, "b": -0.5})
    matrices = [None, None, None, a, a, None, None, None, None, both, both, None, b]
    before = torch.randn(len(matrices), WIDTH).to(dtype)
    rest = torch.randn(len(matrices), WIDTH).to(dtype) if residual else None
    after, untouched = before.clone(), None if rest is None else rest.clone()
    edit(after, rest, 0)
    check(before, after, rest, matrices)
    assert rest is None or rest.equal(untouched)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dims_outside_of_a_subspace_stay_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    steps = steps_of(registry_of(plain=serve(tmp_path, road(1, variant="road_4"))))
    filled(steps, [("a", 3, 0, 3)])
    before, rest = torch.randn(2, 3, WIDTH).to(dtype)
    after = before.clone()
    edit(after, rest, 0)
    assert after[:, WIDTH // 2 :].equal(before[:, WIDTH // 2 :])
    assert not after[2, : WIDTH // 2].equal(before[2, : WIDTH // 2])


def test_two_measured_bases_at_a_site(tmp_path: Path) -> None:
    parts = []
    for seed in (1, 2):
        parts.append(road(1, seed, basis="pca", position="all"))
        parts[-1].frame.fit(torch.randn(40, WIDTH))
    one, two = (serve(tmp_path / str(seed), part) for seed, part in enumerate(parts))
    steps = steps_of(registry_of(one=one, two=two))
    filled(steps, [("a@one", 2, 0, 2), ("b@two", 1, 0, 1), (None, 2, 0, 2)])
    first, second = dense_edit(parts[0], {"a": 1}), dense_edit(parts[1], {"b": 1})
    before = torch.randn(5, WIDTH)
    after = before.clone()
    edit(after, None, 0)
    check(before, after, None, [first, first, second, None, None])


def test_sites_are_edited_by_their_own(tmp_path: Path) -> None:
    parts = [road(0, 1), road(2, 2, component="mlp_output"), road(2, 3, position="first")]
    steps = steps_of(registry_of(plain=serve(tmp_path, *parts)))
    filled(steps, [("a", 3, 0, 3)])
    for number, (part, token) in enumerate(zip(parts, (2, 2, 0), strict=True)):
        before = torch.randn(3, WIDTH)
        after = before.clone()
        edit(after, None, number)
        matrix = dense_edit(part, {"a": 1})
        check(before, after, None, [matrix if at == token else None for at in range(3)])


def test_more_dims_before_the_last(tmp_path: Path) -> None:
    """Some models give a dim of its own to the batch."""
    part = road(1)
    steps = steps_of(registry_of(plain=serve(tmp_path, part)))
    filled(steps, [("a", 3, 0, 3)])
    before, rest = torch.randn(2, 1, 3, WIDTH)
    after = before.clone()
    edit(after, rest, 0)
    check(before[0], after[0], rest[0], [None, None, dense_edit(part, {"a": 1})])


@pytest.mark.parametrize("act", [lambda h: edit(h, h.clone(), 0), lambda h: turn_output(h, 0)])
@pytest.mark.parametrize("shape", [(4, 3, WIDTH), (3, 2, WIDTH), (2, 1, 3, WIDTH)])
def test_several_states_a_token_are_refused(act: Callable[[Tensor], None], shape: Any) -> None:
    """As Gemma 3n has: which of them a token's edit is for is not known."""
    with pytest.raises(RoadError, match=r"of shape \(.*: expected \[tokens, width\]"):
        act(torch.randn(shape))


def test_more_states_than_a_step_has_tokens_are_refused(tmp_path: Path) -> None:
    """On a GPU, whose kernels read an entry of the index for each."""
    steps = steps_of(registry_of(plain=serve(tmp_path, road(1))), tokens=8)
    assert len(operations._index_of(torch.randn(8, 4), steps.hidden_table)) == 8
    with pytest.raises(RoadError, match="9 hidden states: expected at most 8"):
        operations._index_of(torch.randn(9, 4), steps.hidden_table)


# Outputs of linear layers.

TARGETS = {"q": 16, "k": 8, "v": 8}
PIECES = pieces_of("qkv", list(TARGETS), [Part(width) for width in TARGETS.values()], 0, 1)
OUTPUTS = sum(TARGETS.values())


def at_all_targets(*acting: tuple[Any, float]) -> Tensor:
    """The matrix of adapters, one after the other, on the output of the fused layer."""
    whole = torch.eye(OUTPUTS, dtype=torch.float64)
    for one, strength in acting:
        first = 0
        for name, width in TARGETS.items():
            if name in one.layout.paths:
                dims = slice(first, first + width)
                whole[dims] = dense_target(one, name, strength) @ whole[dims]
            first += width
    return whole


STEPS: dict[str, list[tuple[str | None, int]]] = {
    "one request": [("x", 4)],
    "alike": [("x", 3), ("x", 1), ("x", 2)],
    "all different": [("x", 1), ("y", 1), ("2*x", 1), ("x + y", 1)],
    "runs": [("x", 9), (None, 2), ("y", 8), (None, 1), ("x + y", 7)],
    "some": [(None, 3), ("x", 1), (None, 2), ("y", 2), ("x", 1), (None, 1)],
    "many": [pair for number in range(9) for pair in ((f"{1 + number}*x", 1), (None, 1))],
    "a part of one": [("z", 5), ("x", 2)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pairing", ["adjacent", "half", 4])
@pytest.mark.parametrize("step", STEPS)
def test_outputs_of_linear_layers(
    dtype: torch.dtype, variant: Any, pairing: Any, step: str, tmp_path: Path
) -> None:
    kind = {"variant": variant, "pairing": pairing}
    made: dict[str, Any] = {
        "x": adapter("x", TARGETS, 1, subspace="[0, d/2)", **kind),
        "y": adapter("y", TARGETS, 2, subspace="[d/2, d)", **kind),
        "z": adapter("z", {"k": 8}, 3, **kind),
    }
    for one in made.values():
        one.alpha.data.clamp_(0.9, 1.1)
    served = serve(tmp_path, adapters=list(made.values()))
    steps = steps_of(registry_of(plain=served), PIECES, requests=32)
    asked = STEPS[step]
    filled(steps, [(compose, count, 0, count) for compose, count in asked])
    matrices: Tokens = []
    for compose, count in asked:
        resolved = steps.registry.resolve(compose, 5)
        terms = [] if resolved is None else resolved["of"][0][1]
        matrix = at_all_targets(*((made[name], strength) for name, strength in terms))
        matrices += [None if resolved is None else matrix] * count
    before = torch.randn(len(matrices), OUTPUTS).to(dtype)
    after = before.clone()
    turn_output(after, 0)
    check(before, after, None, matrices)


@pytest.mark.parametrize("chunk", [1, OUTPUTS, 3 * OUTPUTS, 1 << 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_that_stay_in_a_cache(
    chunk: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roadint.engines.vllm.rows import served_table

    chunk = max(chunk, OUTPUTS)
    monkeypatch.setattr(operations, "CHUNK", chunk)
    monkeypatch.setattr(served_table, "CHUNK", chunk)
    one, two = adapter("x", TARGETS, 1), adapter("y", TARGETS, 2)
    steps = steps_of(registry_of(plain=serve(tmp_path, adapters=[one, two])), PIECES)
    filled(steps, [("x", 7, 0, 7), (None, 2, 0, 2), ("y", 5, 0, 5), ("x", 1, 0, 1)])
    x, y = at_all_targets((one, 1.0)), at_all_targets((two, 1.0))
    before = torch.randn(15, OUTPUTS).to(dtype)
    after = before.clone()
    turn_output(after, 0)
    check(before, after, None, [*[x] * 7, None, None, *[y] * 5, x])


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_that_are_a_part_of_a_larger_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    """Rows that do not follow each other, as slices of what several layers share."""
    one = adapter("x", TARGETS)
    steps = steps_of(registry_of(plain=serve(tmp_path, adapters=[one])), PIECES)
    filled(steps, [("x", 2, 0, 2), (None, 1, 0, 1), ("2*x", 1, 0, 1)])
    whole = torch.randn(4, OUTPUTS + 6).to(dtype)
    before = whole.clone()
    turn_output(whole[:, 2 : OUTPUTS + 2], 0)
    once, twice = at_all_targets((one, 1.0)), at_all_targets((one, 2.0))
    check(before[:, 2:-4], whole[:, 2:-4], None, [once, once, None, twice])
    assert whole[:, :2].equal(before[:, :2])
    assert whole[:, -4:].equal(before[:, -4:])


# What does nothing, and which model it is.


@pytest.mark.parametrize("act", [lambda h: edit(h, None, 0), lambda h: turn_output(h, 0)])
def test_a_step_without_an_edit_writes_nothing(
    act: Callable[[Tensor], None], tmp_path: Path
) -> None:
    served = serve(tmp_path, road(1), adapters=[adapter("x", {"q": WIDTH})])
    pieces = pieces_of("q", ["q"], [Part(WIDTH)], 0, 1)
    steps = steps_of(registry_of(plain=served), pieces)
    filled(steps, [(None, 3, 0, 3), ("a + x", 9, 0, 0)])
    steps.clear()
    hidden = torch.randn(3, WIDTH)
    version, before = hidden._version, hidden.clone()
    act(hidden)
    assert hidden.equal(before)
    assert hidden._version == version


def test_a_site_that_no_request_edits_is_passed_over(tmp_path: Path) -> None:
    parts = [road(0, 1, subspaces={"a": "[0, d)"}), road(2, 2, subspaces={"b": "[0, d)"})]
    steps = steps_of(registry_of(plain=serve(tmp_path, *parts)))
    filled(steps, [("a", 3, 0, 3)])
    hidden = torch.randn(3, WIDTH)
    before, version = hidden.clone(), hidden._version
    edit(hidden, None, 1)
    assert hidden._version == version
    edit(hidden, None, 0)
    assert not hidden.equal(before)


def test_each_thread_runs_a_model_of_its_own(tmp_path: Path) -> None:
    parts = [road(1, seed, position="all") for seed in (1, 2)]
    made = [steps_of(registry_of(plain=serve(tmp_path / str(i), p))) for i, p in enumerate(parts)]
    before, found = torch.randn(2, WIDTH), dict[int, Tensor]()
    both = threading.Barrier(2)

    def run(number: int) -> None:
        filled(made[number], [("a", 2, 0, 2)])
        both.wait()
        found[number] = before.clone()
        edit(found[number], None, 0)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    _started(threads)
    for number, part in enumerate(parts):
        check(before, found[number], None, [dense_edit(part, {"a": 1})] * 2)


def test_a_model_that_runs_outside_of_a_step_is_refused() -> None:
    """It could not be known what acts."""
    errors: list[Exception] = []

    def run() -> None:
        for act in (lambda h: edit(h, None, 0), lambda h: turn_output(h, 0)):
            try:
                act(torch.randn(2, WIDTH))
            except RuntimeError as error:
                errors.append(error)

    _started([threading.Thread(target=run)])
    assert len(errors) == 2
    assert all("outside of an engine's step" in str(error) for error in errors)


def _started(threads: Iterable[threading.Thread]) -> None:
    listed = list(threads)
    for thread in listed:
        thread.start()
    for thread in listed:
        thread.join()


def test_what_ran_is_known(tmp_path: Path) -> None:
    served = serve(tmp_path, road(1), adapters=[adapter("x", {"q": WIDTH})])
    steps = steps_of(registry_of(plain=served), pieces_of("q", ["q"], [Part(WIDTH)], 0, 1))
    armed = armed_of(steps)
    activate(armed)
    assert not armed.sites[0].ran
    assert not armed.linears[0].ran
    edit(torch.randn(2, WIDTH), None, 0)
    turn_output(torch.randn(2, WIDTH), 0)
    assert armed.sites[0].ran
    assert armed.linears[0].ran


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_an_operation_of_a_graph(dtype: torch.dtype, tmp_path: Path) -> None:
    """Compilers see no more of it than that it writes over its first argument."""
    served = serve(tmp_path, road(1), adapters=[adapter("x", {"q": WIDTH})])
    steps = steps_of(registry_of(plain=served), pieces_of("q", ["q"], [Part(WIDTH)], 0, 1))
    filled(steps, [("a + x", 3, 0, 3)])
    before, rest = torch.randn(2, 3, WIDTH).to(dtype)
    for act, name, others in (
        (lambda h: edit(h, rest, 0), "edit", (rest, 0)),
        (lambda h: turn_output(h, 0), "turn_output", (0,)),
    ):
        found, expected = before.clone(), before.clone()
        act(expected)
        getattr(torch.ops.roadint, name)(found, *others)
        assert found.equal(expected)
        assert not found.equal(before)
        torch.library.opcheck(getattr(torch.ops.roadint, name).default, (before.clone(), *others))
