"""What all processes compute with their shards and their rows is the dense product `R (W x + b)`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from roadint import RoadError
from roadint.adapters.adapter import RoadAdapter
from roadint.engines.vllm.rows.linear_rows import LinearRows
from roadint.engines.vllm.rows.plan import Plan
from roadint.engines.vllm.rows.shards import Part, Piece, pieces_of
from roadint.rotation.rotation import Rotation
from tests.engines.vllm.helpers import (
    adapter,
    dense_target,
    dense_turn,
    plan_of,
    registry_of,
    serve,
)

INPUTS, HEAD, HEADS, KV = 8, 4, 4, 2
WIDTHS = {
    "q": HEADS * HEAD,
    "k": KV * HEAD,
    "v": KV * HEAD,
    "o": 8,
    "gate": 32,
    "up": 32,
    "down": 8,
}
GROUPS: dict[str, Any] = {"adjacent": "adjacent", "groups of 4": 4}


class Process(NamedTuple):
    """The linear layers of one process, as vLLM lays them out."""

    pieces: dict[str, list[Piece]]
    widths: dict[str, int]
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    inputs: dict[str, Tensor]


def processes(count: int) -> tuple[list[Process], dict[str, Tensor]]:
    """Every process, and what the whole targets compute without a rotation."""
    weight = {name: torch.randn(width, INPUTS).double() for name, width in WIDTHS.items()}
    bias = {name: torch.randn(width).double() for name, width in WIDTHS.items()}
    x = torch.randn(3, INPUTS).double()
    copies = max(1, count // KV)
    made = []
    for rank in range(count):
        pieces: dict[str, list[Piece]] = {}
        weights, biases, inputs = {}, {}, {}
        fused = {
            "qkv": (["q", "k", "v"], [Part(WIDTHS["q"]), *[Part(WIDTHS["k"], copies)] * 2]),
            "gate_up": (["gate", "up"], [Part(WIDTHS["gate"]), Part(WIDTHS["up"])]),
        }
        for module, (names, parts) in fused.items():
            shards = [
                (name, rank // part.copies, count // part.copies)
                for name, part in zip(names, parts, strict=True)
            ]
            weights[module] = torch.cat([weight[name].chunk(of)[at] for name, at, of in shards])
            biases[module] = torch.cat([bias[name].chunk(of)[at] for name, at, of in shards])
            inputs[module] = x
            pieces |= pieces_of(module, names, parts, rank, count)
        for name in ("o", "down"):  # a share of the inputs; the bias is added once
            weights[name] = weight[name].chunk(count, dim=1)[rank]
            biases[name] = bias[name] * (rank == 0)
            inputs[name] = x.chunk(count, dim=1)[rank]
            pieces |= pieces_of(name, [name], [Part(WIDTHS[name])], 0, 1)
        widths = {module: len(part) for module, part in weights.items()}
        made.append(Process(pieces, widths, weights, biases, inputs))
    return made, {name: x @ weight[name].T + bias[name] for name in WIDTHS}


def turned(rows: LinearRows, row: Rotation, process: Process) -> dict[str, Tensor]:
    """The outputs of a process: its product, then its places, by matrices."""
    outputs = {}
    for module, weight in process.weights.items():
        output = process.inputs[module] @ weight.T + process.biases[module]
        for place in rows.at(module):
            dims = slice(place.offset, place.offset + place.width)
            output[:, dims] = output[:, dims] @ dense_turn(row, place).T
        outputs[module] = output
    return outputs


def together(processes: list[Process], outputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The targets, from what all processes computed: parts end to end, or sums."""
    whole = {name: torch.full((3, width), torch.nan).double() for name, width in WIDTHS.items()}
    for process, computed in zip(processes, outputs, strict=True):
        for name, listed in process.pieces.items():
            for piece in listed:
                found = computed[piece.module][:, piece.offset : piece.offset + piece.width]
                if name in ("o", "down"):
                    whole[name] = found + whole[name].nan_to_num(0)
                    continue
                dims = slice(piece.start, piece.start + piece.width)
                is_copy = not whole[name][:, dims].isnan().any()
                assert not is_copy or whole[name][:, dims].equal(found)
                whole[name][:, dims] = found
    return whole


def check(
    made: list[Process],
    bare: Mapping[str, Tensor],
    plan: Plan,
    matrices: Mapping[str, Tensor],
    reserve: bool = False,
) -> None:
    outputs = []
    for process in made:
        served = [found for found, _ in plan.adapters]
        rows = LinearRows(served, process.pieces, process.widths, reserve=reserve)
        outputs.append(turned(rows, rows.rows([plan]).row(0), process))
    found = together(made, outputs)
    for name, output in bare.items():
        expected = output @ matrices[name].T if name in matrices else output
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("pairing", GROUPS)
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize("reserve", [False, True])
def test_all_targets(count: int, pairing: str, variant: Any, reserve: bool, tmp_path: Path) -> None:
    one = adapter("x", WIDTHS, variant=variant, pairing=GROUPS[pairing])
    plan = plan_of(registry_of(plain=serve(tmp_path, adapters=[one])), "0.7*x")
    made, bare = processes(count)
    check(made, bare, plan, {name: dense_target(one, name, 0.7) for name in WIDTHS}, reserve)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("targets", [["k"], ["gate", "o"], ["up", "v", "down"]])
def test_some_targets_and_some_blocks(count: int, targets: list[str], tmp_path: Path) -> None:
    part = adapter("x", {name: WIDTHS[name] for name in targets}, subspace="[d/2, d)")
    plan = plan_of(registry_of(plain=serve(tmp_path, adapters=[part])), "x")
    made, bare = processes(count)
    check(made, bare, plan, {name: dense_target(part, name, 1) for name in targets})
    for process in made:
        rows = LinearRows([plan.adapters[0][0]], process.pieces, process.widths, reserve=False)
        assert set(rows.modules) == {p.module for name in targets for p in process.pieces[name]}


@pytest.mark.parametrize("count", [1, 2])
def test_products_of_adapters_and_checkpoints(count: int, tmp_path: Path) -> None:
    """Adapters of one layout and of others, at strengths of their own, all in one row."""
    one = adapter("x", WIDTHS, 1)
    two = adapter("y", WIDTHS, 2)
    some = adapter("z", {"k": WIDTHS["k"], "down": WIDTHS["down"]}, 3)
    registry = registry_of(
        plain=serve(tmp_path / "one", adapters=[one, two]),
        b=serve(tmp_path / "two", adapters=[some]),
    )
    plan = plan_of(registry, "x - 0.5*y + 2*z@b")
    strengths = {one: 1.0, two: -0.5, some: 2.0}
    matrices = {}
    for name, width in WIDTHS.items():
        matrices[name] = torch.eye(width, dtype=torch.float64)
        for part, strength in strengths.items():
            if name in part.layout.paths:
                matrices[name] = dense_target(part, name, strength) @ matrices[name]
    check(*processes(count), plan, matrices)


def test_a_row_is_made_of_fresh_numbers(tmp_path: Path) -> None:
    """What one request's row is turned further by must not stay for the next one's."""
    registry = registry_of(
        plain=serve(tmp_path / "one", adapters=[adapter("x", {"k": 8})]),
        b=serve(tmp_path / "two", adapters=[adapter("x", {"k": 8}, 2)]),
    )
    process = processes(1)[0][0]
    rows = LinearRows(registry.served.values(), process.pieces, process.widths, reserve=False)
    before = rows.rows([plan_of(registry, "x")]).u.clone()
    both = rows.rows([plan_of(registry, "x + x@b")]).u
    assert rows.rows([plan_of(registry, "x")]).u.equal(before)
    assert not both.equal(before)


def wide(variant: Any = "road_1", **arguments: Any) -> RoadAdapter:
    return adapter("x", {"gate": 32}, variant=variant, **arguments)


@pytest.mark.parametrize(
    ("made", "count", "message"),
    [
        (wide(pairing="half"), 2, "gate of adapter 'x' is paired in groups of 32 dims, and a"),
        (wide(pairing=32), 4, "process has 8 dims of it: expected fewer processes"),
        (adapter("x", {"q": 12}), 1, "q is 12 wide in it, and 16 in the engine: expected its own"),
        (adapter("x", {"q": 12}), 4, "q is 12 wide in it, and 16 in the engine: expected its own"),
        (adapter("x", {"q": 24}), 2, "q is 24 wide in it, and 16 in the engine: expected its own"),
        (adapter("x", {"dwn": 8}), 1, "'x' turns dwn, which .*; did you mean 'down'"),
    ],
)
def test_what_does_not_fit_is_refused(
    made: RoadAdapter, count: int, message: str, tmp_path: Path
) -> None:
    served = serve(tmp_path, adapters=[made])
    for process in processes(count)[0]:
        with pytest.raises(RoadError, match=message) as refused:
            LinearRows([served], process.pieces, process.widths, reserve=False)
        rows = LinearRows([], process.pieces, process.widths, reserve=True)
        with pytest.raises(RoadError, match=message):
            rows.check(served)
        assert str(refused.value).startswith(str(tmp_path))


def test_a_pair_that_two_processes_would_share_is_refused(tmp_path: Path) -> None:
    """12 processes of one dim each, of adjacent pairs."""
    served = serve(tmp_path, adapters=[adapter("x", {"odd": 6})])
    pieces = pieces_of("odd", ["odd"], [Part(6)], 1, 2)
    with pytest.raises(RoadError, match="groups of 2 dims, and a process has 3 dims of it"):
        LinearRows([served], pieces, {"odd": 3}, reserve=False)


def test_what_is_loaded_later_has_a_place_or_is_refused(tmp_path: Path) -> None:
    process = processes(1)[0][0]
    first = serve(tmp_path / "first", adapters=[adapter("x", {"q": 16})])
    armed = LinearRows([first], process.pieces, process.widths, reserve=False)
    all_armed = LinearRows([], process.pieces, process.widths, reserve=True)
    cases: dict[str, tuple[RoadAdapter, bool, bool]] = {  # whether `armed`, `all_armed` take it
        "same": (adapter("y", {"q": 16}), True, True),
        "beside": (adapter("y", {"k": 8}), True, True),  # of the same fused layer
        "other": (adapter("y", {"o": 8}), False, True),
        "groups": (adapter("y", {"q": 16}, pairing="half"), False, False),
        "mirrored": (adapter("y", {"q": 16}, variant="road_2"), False, False),
    }
    for name, (later, takes, all_take) in cases.items():
        served = serve(tmp_path / name, adapters=[later])
        plan = plan_of(registry_of(plain=served), "y")
        for rows, takes_it in ((armed, takes), (all_armed, all_take)):
            if takes_it:
                rows.check(served)
                path, width = later.layout.paths[0], later.layout.widths[0]
                piece = process.pieces[path][0]
                row, place = rows.rows([plan]).row(0), rows.at(piece.module)[0]
                expected = torch.eye(place.width, dtype=torch.float64)
                dims = slice(piece.offset, piece.offset + width)
                expected[dims, dims] = dense_target(later, path, 1)
                torch.testing.assert_close(dense_turn(row, place), expected, rtol=1e-5, atol=1e-5)
            else:
                with pytest.raises(RoadError, match="start it with"):
                    rows.check(served)
