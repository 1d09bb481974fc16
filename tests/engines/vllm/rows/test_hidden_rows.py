"""Rows of hidden-state edits are the dense edits of the sites, and what has no place is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roadint import RoadError
from roadint.engines.vllm.rows.hidden_rows import HiddenRows
from roadint.engines.vllm.rows.plan import Plan
from roadint.rotation.rotation import Rotation
from tests.engines.vllm.helpers import dense_edit, dense_turn, plan_of, registry_of, road, serve
from tests.helpers import WIDTH

BASES: list[dict[str, Any]] = [
    {},
    {"pairing": "half"},
    {"pairing": 8},
    {"basis": "random", "basis_seed": 3},
    {"basis": "hadamard", "basis_seed": 4, "pairing": "half"},
]
EYE = torch.eye(WIDTH, dtype=torch.float64)


def matrix_at(hidden: HiddenRows, row: Rotation, site: Any) -> Tensor:
    """All places of a site one after the other, each in its basis."""
    matrix = EYE
    for place, frame in hidden.at(site):
        q = EYE if frame is None else frame.out(torch.eye(WIDTH)).double().T
        matrix = (EYE + q @ (dense_turn(row, place) - EYE) @ q.T) @ matrix
    return matrix


def check(
    hidden: HiddenRows, plan: Plan, code: int, parts: Sequence[tuple[Any, Mapping[str, float]]]
) -> None:
    """The sites are edited by `parts`, in their order, and all others not at all."""
    row = hidden.rows([(plan, code)]).row(0)
    expected = dict.fromkeys(hidden.sites, EYE)
    for part, strengths in parts:
        site = part.layer, part.component
        expected[site] = dense_edit(part, strengths) @ expected[site]
    for site, matrix in expected.items():
        torch.testing.assert_close(matrix_at(hidden, row, site), matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize("form", ["rotation", "interchange"])
def test_one_site(basis: dict[str, Any], variant: Any, form: Any, tmp_path: Path) -> None:
    part = road(variant=variant, form=form, **basis)
    served = serve(tmp_path, part)
    hidden, plan = HiddenRows([served], (), WIDTH), plan_of(registry_of(plain=served), "a - 0.5*b")
    if form == "rotation":
        check(hidden, plan, 1, [(part, {"a": 1.0, "b": -0.5})])
    else:
        wanted = part.rotation(part.strengths([plan.edits[0].composition])[0])
        row = hidden.rows([(plan, 1)]).row(0)
        ((place, _),) = hidden.at((1, "block_output"))
        torch.testing.assert_close(dense_turn(row, place), wanted.dense().double())
    assert hidden.mirrored == (variant != "road_1")


def test_sites_positions_and_checkpoints(tmp_path: Path) -> None:
    parts = [
        road(0, 1, subspaces={"a": "[0, d/2)"}),
        road(2, 2, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}, position="all", phase="both"),
        road(2, 3, subspaces={"a": "[0, d/2)"}),  # at the same site, of other tokens
        road(2, 4, subspaces={"b": "[0, d)"}, component="attention_output", **BASES[3]),
    ]
    other = road(2, 5, subspaces={"a": "[0, d/2)"})
    one, two = serve(tmp_path / "one", *parts), serve(tmp_path / "two", other)
    hidden = HiddenRows([one, two], (), WIDTH)
    assert hidden.sites == [(0, "block_output"), (2, "block_output"), (2, "attention_output")]
    assert [len(hidden.at(site)) for site in hidden.sites] == [1, 1, 1]
    assert hidden.codes == 3
    plan = plan_of(registry_of(plain=one, two=two), "a + 2*b - 0.5*a@two")
    assert [str(position) for position in plan.positions] == ["last", "all"]
    a, b, c = {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, {"a": -0.5}
    last = [(parts[0], a), (parts[2], a), (parts[3], b), (other, c)]
    check(hidden, plan, 1, last)
    check(hidden, plan, 2, [(parts[1], b)])
    check(hidden, plan, 3, [last[0], (parts[1], b), *last[1:]])


def test_rows_that_are_made_at_once_are_those_made_alone(tmp_path: Path) -> None:
    """Edits that do not commute act in the order of the checkpoint, whichever row names them first."""
    parts = [
        road(1, 1, variant="road_4", position="first"),
        road(1, 2, variant="road_4", position="last"),
        road(1, 3, variant="road_4", position="all"),
    ]
    one = serve(tmp_path / "one", *parts)
    two = serve(tmp_path / "two", road(1, 4, subspaces={"c": "[0, d/2)"}), road(2, 5))
    registry, hidden = registry_of(plain=one, two=two), HiddenRows([one, two], (), WIDTH)
    alone = [plan_of(registry, text) for text in ("a", "-0.5*b", "a + b", "c@two + a@two")]
    wanted = [(plan, code) for code in (5, 3, 7, 2, 1) for plan in alone]
    made = hidden.rows(wanted)
    assert made.v is not None
    for number, (plan, code) in enumerate(wanted):
        row = hidden.rows([(plan, code)]).row(0)
        v = torch.zeros_like(row.u) if row.v is None else row.v
        torch.testing.assert_close(made.u[number], row.u, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(made.v[number], v, rtol=1e-6, atol=1e-6)
        if plan is not alone[3]:
            strengths = dict(plan.hidden[0][1])
            acting = [part for bit, part in enumerate(parts) if code >> bit & 1]
            check(hidden, plan, code, [(part, strengths) for part in acting])


def test_measured_bases_are_a_checkpoints_own(tmp_path: Path) -> None:
    parts = []
    for seed in (1, 2):
        part = road(1, seed, basis="pca")
        part.frame.fit(torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(seed)))
        parts.append(part)
    one, two = (serve(tmp_path / str(seed), part) for seed, part in enumerate(parts))
    hidden, registry = HiddenRows([one, two], (), WIDTH), registry_of(one=one, two=two)
    assert len(hidden.at((1, "block_output"))) == 2
    for label, part in (("one", parts[0]), ("two", parts[1])):
        check(hidden, plan_of(registry, f"a@{label}"), 1, [(part, {"a": 1.0})])
    with pytest.raises(RoadError, match="different bases"):
        registry.resolve("a@one + a@two", 5)


def test_what_is_loaded_later_has_a_place_or_is_refused(tmp_path: Path) -> None:
    first = serve(tmp_path / "first", road(1, position="last"), road(2, position="all"))
    hidden = HiddenRows([first], (0,), WIDTH)
    cases: dict[str, tuple[Any, str | None]] = {
        "same": (road(1, 7, position="all"), None),
        "reserved": (road(0, 7), None),
        "layer": (
            road(0, 7, component="mlp_output"),
            "edits the mlp_output of layer 0 in the basis",
        ),
        "basis": (road(1, 7, basis="random"), "in the basis 'random', for which the engine has no"),
        "pairing": (road(1, 7, pairing="half"), "no place: start it with .*layers=.1."),
        "variant": (
            road(1, 7, variant="road_2"),
            "is road_2, and the engine was started with road_1",
        ),
        "position": (road(1, 7, position="last(2)"), r"edits at last\(2\) \(prompt\), a further"),
        "phase": (road(1, 7, position="all", phase="both"), r"edits at all \(both\), a further"),
        "measured": (road(1, 7, basis="pca"), "in the basis 'pca', for which"),
    }
    cases["measured"][0].frame.fit(torch.randn(40, WIDTH))
    for name, (part, message) in cases.items():
        served = serve(tmp_path / name, part)
        if message is None:
            hidden.check(served, [first])
            plan = plan_of(registry_of(plain=served), "a + b")
            check(hidden, plan, 1, [(part, {"a": 1.0, "b": 1.0})])
        else:
            with pytest.raises(RoadError, match=message) as refused:
                hidden.check(served, [first])
            assert str(refused.value).startswith(str(tmp_path))


def test_a_position_may_take_the_place_of_one_that_went(tmp_path: Path) -> None:
    last, first = (serve(tmp_path / text, road(0, position=text)) for text in ("last", "first"))
    hidden = HiddenRows([], (0,), WIDTH)
    assert hidden.codes == 1
    hidden.check(last)
    with pytest.raises(RoadError, match="edits at first"):
        hidden.check(first, [last])
    hidden.check(first)


def test_many_positions_need_no_more_rows_than_there_are_tokens(tmp_path: Path) -> None:
    parts = [road(0, subspaces={f"n{i}": "[0, d)"}, position=f"at({i})") for i in range(60)]
    assert HiddenRows([serve(tmp_path, *parts)], (), WIDTH).codes == 2**60 - 1


def test_an_engine_without_checkpoints() -> None:
    hidden = HiddenRows([], (), WIDTH)
    assert (hidden.sites, hidden.places.blocks, hidden.codes) == ([], 0, 1)
