"""What pyvene's subspaces and subspace_partition mean to an intervention: pyvene's meaning, or a RoadError."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from roadint import RoadError, RoadInterchange, RoadIntervention
from roadint.interventions.loreft import LoreftIntervention
from roadint.interventions.pyvene.patches import pyvene as pv
from tests.helpers import WIDTH, build

NAMED = {"a": "[0, 4)", "b": "[4, 8)"}


def turned(**arguments: Any) -> RoadIntervention:
    made = RoadIntervention(**{"embed_dim": 8, **arguments})
    with torch.no_grad():
        made.theta.fill_(1.0)
    return made


def changed(intervention: RoadIntervention, subspaces: Any, rows: int = 2) -> list[list[int]]:
    """For each row, the dims that the call has changed."""
    base = torch.ones(rows, 3, 8)
    out = intervention(base, subspaces=subspaces)
    return [row.nonzero().flatten().tolist() for row in (out != base).all(dim=1)]


A, B, ALL, NONE = [0, 1, 2, 3], [4, 5, 6, 7], list(range(8)), []


@pytest.mark.parametrize(
    ("subspaces", "expected"),
    [
        (None, [ALL, ALL]),
        ("a", [A, A]),
        ("a + b", [ALL, ALL]),
        ({"a": 1.0}, [A, A]),
        ([[0], [1]], [A, B]),
        ([[], [0, 1]], [NONE, ALL]),
        (((0,), (1,)), [A, B]),
        (([np.int64(0)], [np.int32(1)]), [A, B]),
        (torch.tensor([[0], [1]]), [A, B]),
        ([torch.tensor([0]), torch.tensor([0, 1])], [A, ALL]),
        (np.array([[1], [0]]), [B, A]),
        ([range(1), {1}], [A, B]),
        ([["a"], "b"], [A, B]),
        ([None, ["a", 1]], [NONE, ALL]),
        ([{"b": 0.5}, "none"], [B, NONE]),
    ],
)
def test_forms_for_named_subspaces(subspaces: Any, expected: list[list[int]]) -> None:
    assert changed(turned(subspaces=NAMED), subspaces) == expected


@pytest.mark.parametrize(
    ("subspaces", "expected"),
    [
        ([[0, 1], [6, 7, 0, 1]], [[0, 1], [0, 1, 6, 7]]),
        ([[0, 0, 1], []], [[0, 1], NONE]),
        ([[np.int64(2), np.int64(3)], [0, 1]], [[2, 3], [0, 1]]),
        (np.array([[2, 3], [4, 5]]), [[2, 3], [4, 5]]),
        (torch.tensor([[2, 3], [4, 5]]), [[2, 3], [4, 5]]),
        ([range(2, 6), None], [[2, 3, 4, 5], NONE]),
        (["road", [0, 1]], [ALL, [0, 1]]),
        ([["road"], [0, 1]], [ALL, [0, 1]]),
    ],
)
def test_forms_for_dims(subspaces: Any, expected: list[list[int]]) -> None:
    assert changed(turned(), subspaces) == expected


@pytest.mark.parametrize(
    ("arguments", "subspaces", "message"),
    [
        ({"subspaces": NAMED}, [0, 1], "0 for a row's subspaces: expected a list"),
        ({}, [0, 0], "0 for a row's subspaces: expected a list"),
        ({"subspaces": NAMED}, 0, "are for no row"),
        ({"subspaces": NAMED}, torch.tensor(0), "are for no row"),
        ({"subspaces": NAMED}, torch.tensor([0, 1]), "expected a list"),
        ({"subspaces": NAMED}, [[True], [False]], "True is not a subspace index"),
        ({"subspaces": NAMED}, torch.tensor([[True, False], [True, True]]), "a mask of bools"),
        ({"subspaces": NAMED}, [[0.0], [1.0]], "0.0 is not a subspace index"),
        ({"subspaces": NAMED}, torch.tensor([[0.0], [1.0]]), "0.0 is not a subspace index"),
        ({"subspaces": NAMED}, [[-1], [0]], "subspace index -1 is outside the partition"),
        ({"subspaces": NAMED}, [[np.int64(7)], [0]], "subspace index 7 is outside the partition"),
        ({"subspaces": NAMED}, [["c"], "a"], "unknown subspace 'c'"),
        ({"subspaces": NAMED}, [[0], [[1]]], r"\[1\] is not a subspace index"),
        ({"subspaces": NAMED}, [[0]], "1 entries in subspaces for 2 rows"),
        ({"subspaces": NAMED}, [object(), [0]], "for a row's subspaces"),
        ({}, [[0.0, 1.0], [0, 1]], "0.0 is not a dim"),
        ({}, [[True, False], [0, 1]], "True is not a dim"),
        ({}, [[8, 9], [0, 1]], "dim 9 is outside the width|dim 8 is outside the width"),
        ({}, [[-2, -1], [0, 1]], "dim -2 is outside the width"),
        ({}, [[1, 2], [0, 1]], "cuts the block"),
        ({}, [["road", 0], [0, 1]], "expected names alone, or dims alone"),
    ],
)
def test_what_is_ambiguous_or_outside_is_refused(
    arguments: dict[str, Any], subspaces: Any, message: str
) -> None:
    with pytest.raises(RoadError, match=message):
        changed(turned(**arguments), subspaces)


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        ([[0, 2], [2, 8]], ["[0, 2)", "[2, 8)"]),
        ([(0, 4), (4, 8)], ["[0, 4)", "[4, 8)"]),
        (torch.tensor([[0, 4], [4, 8]]), ["[0, 4)", "[4, 8)"]),
        (np.array([[0, 4], [4, 8]]), ["[0, 4)", "[4, 8)"]),
        ([[0, 1, 2, 3], [4, 5, 6, 7]], ["[0, 4)", "[4, 8)"]),
        ([[6, 7, 0, 1], [2, 4]], ["[0, 2) | [6, 8)", "[2, 4)"]),
        ([[[0, 2], [6, 8]], [2, 6]], ["[0, 2) | [6, 8)", "[2, 6)"]),
        (["[0, d/2)", range(4, 8)], ["[0, 4)", "[4, 8)"]),
    ],
)
def test_a_partition_is_pyvenes(partition: Any, expected: list[str]) -> None:
    assert [
        str(part) for part in turned(subspace_partition=partition).partition.values()
    ] == expected


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ([[0, 1], [1, 2]], "cuts the block"),
        ([[0, 1]], "cuts the block"),
        ([[4, 5]], "cuts the block"),
        ([[0, 2], [1, 4]], "cuts the block"),
        ([[0, 4], [2, 8]], "overlap"),
        ([[4, 2]], "empty"),
        ([[0, 10]], "outside the width"),
        ([[-2, 2]], "outside the width"),
        ([[0, 2.0]], "2.0 is not a dim"),
        ([[False, True]], "False is not a dim"),
        ([[0], [1]], "cuts the block"),
        ([], "expected a list of ranges"),
        ([[]], "expected a range"),
        ([0, 4], "expected a range"),
        (4, "expected a list of ranges"),
    ],
)
def test_partitions_that_are_none_are_refused(partition: Any, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        turned(subspace_partition=partition)


def test_pairs_are_ranges_where_rows_are_counted_one_by_one() -> None:
    """pyvene's own partition of single rows."""
    partition = [[0, 1], [1, 2], [3, 5]]
    for made in (
        RoadInterchange(embed_dim=8, subspace_partition=partition),
        LoreftIntervention(embed_dim=8, rank=5, subspace_partition=partition),
    ):
        assert [part.blocks for part in made.partition.values()] == [[0], [1], [3, 4]]
    theirs = pv.RotatedSpaceIntervention(embed_dim=8, subspace_partition=partition)
    assert theirs.subspace_partition == [[0], [1], [3, 4]]


def test_through_pyvene_in_every_form() -> None:
    model = build()
    intervention = RoadIntervention(layer=1, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"})
    intervenable = pv.IntervenableModel([intervention], model)
    torch.nn.init.normal_(intervention.theta)
    ids = torch.randint(3, 100, (2, 6))

    def run(subspaces: Any) -> Tensor:
        return intervenable({"input_ids": ids}, unit_locations={"base": 4}, subspaces=subspaces)[
            1
        ].logits

    first = run([[[0], [0]]])
    for same in (
        0,
        [0],
        "a",
        {"a": 1.0},
        [["a", "a"]],
        torch.tensor([[[0], [0]]]),
        [[{"a": 1.0}, np.array([0])]],
    ):
        assert torch.equal(run(same), first)
    assert torch.equal(run("a+b"), run(None))  # and not its first letter
    for ambiguous in (
        [[0, 1]],
        [np.int64(0)],
        torch.tensor([0]),
        ["a", "b"],
        ["a"],
        [],
        [[[0], [0]], [[1], [1]]],
        0.5,
    ):
        with pytest.raises(RoadError):
            run(ambiguous)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(2, WIDTH), (2, 3, WIDTH), (2, 4, 3, WIDTH), (0, 3, WIDTH), (2, 0, WIDTH)]
)
def test_states_of_every_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    intervention = turned(embed_dim=WIDTH, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"})
    base = torch.randn(shape, dtype=dtype)
    out = intervention(base, subspaces=[["a"], ["b"]][: shape[0]])
    assert out.dtype == dtype
    for row in range(shape[0]):
        strengths = intervention.partition.strengths({"ab"[row]: 1.0})
        matrix = intervention.rotation(strengths).dense().detach()
        torch.testing.assert_close(
            out[row], (base[row].float() @ matrix.T).to(dtype), rtol=1e-2, atol=1e-2
        )


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (torch.ones(8), r"float32 \(8,\): expected floating-point"),
        (torch.ones(2, 8, dtype=torch.long), "int64"),
        (torch.ones(2, 8, dtype=torch.complex64), "complex64"),
        (torch.ones(2, 6), "width 6 for an intervention of width 8"),
        (torch.ones(2, 8, device="meta"), r"hidden states on meta .* expected .to\('meta'\) first"),
        ([1.0] * 8, "expected floating-point"),
    ],
)
def test_other_states_are_refused(base: Any, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        turned()(base)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.ones(2, 3, 1), "a source of shape"),
        (torch.ones(2, 2, 8), "a source of shape"),
        (torch.ones(1, 2, 3, 8), "a source of shape"),
        (torch.ones(2, 3, 8, dtype=torch.long), "a source is"),
        (torch.ones(2, 3, 8, device="meta"), "a source on meta"),
    ],
)
def test_sources_that_do_not_fit_are_refused(source: Tensor, message: str) -> None:
    interchange = RoadInterchange(embed_dim=8, rows="both")
    base = torch.zeros(2, 3, 8)
    assert torch.equal(interchange(base, torch.ones(8)), torch.ones(2, 3, 8))
    with pytest.raises(RoadError, match=message):
        interchange(base, source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": "wide"}, "embed_dim 'wide' is no width"),
        ({"embed_dim": 8.0}, "is no width"),
        ({"embed_dim": 0}, "is no width"),
        ({"embed_dim": -8}, "is no width"),
        ({"embed_dim": 10**12}, "is no width"),
        ({"embed_dim": True}, "is no width"),
        ({"embed_dim": 9, "max_number_of_units": 2}, "is no width"),
        ({"embed_dim": 8, "max_number_of_units": 0}, "max_number_of_units 0"),
        ({"layer": 1.0}, "layer 1.0 is no index"),
        ({"layer": True}, "layer True is no index"),
        ({"component": 3}, "component 3 is no name"),
    ],
)
def test_arguments_that_are_no_numbers_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RoadError, match=message):
        RoadIntervention(**arguments)


def test_numbers_of_other_libraries_are_numbers() -> None:
    made = RoadIntervention(
        layer=np.int64(3), embed_dim=torch.tensor(8), max_number_of_units=np.int32(2)
    )
    assert (made.layer, made.width, type(made.layer)) == (3, 4, int)
