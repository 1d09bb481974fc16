"""Launches and bytes: that the counts are those of sums by hand."""

from typing import Any

import torch

from roadint.bench.linear import bench_linear
from roadint.bench.linear_systems import RANK
from roadint.bench.shapes import SHAPES
from roadint.bench.traffic import Counter
from roadint.rotation.kernels.operation import turn_rows


def test_products_and_views_are_counted() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5, dtype=torch.float32)
    with Counter() as counter:
        c = (a @ b).view(15)
        c.add_(1)
    assert counter.names == ["aten.mm", "aten.add_.Tensor"]
    assert (counter.launches, counter.bytes) == (2, 4 * (12 + 20 + 15) + 4 * (15 + 15))


def test_a_turn_is_one_launch_that_reads_the_rotations_of_its_rows() -> None:
    """Whatever the size of the table: hidden states in and out, an entry a row, its blocks."""
    h = torch.ones(3, 1, 16, dtype=torch.bfloat16)
    for slots in (3, 100):
        table, index = torch.ones(slots, 40, 2), torch.tensor([0, 2, 1])
        with Counter() as counter, torch.no_grad():
            torch.ops.roadint.turn(h, table, None, index, 8, 2)
        assert counter.launches == 1
        assert counter.bytes == 2 * 3 * 16 * 2 + 3 * 8 + 3 * 8 * 8
    expected = turn_rows(h, table, None, index, 8, 2)
    assert torch.equal(torch.ops.roadint.turn(h, table, None, index, 8, 2), expected)


def test_a_compiled_step_has_one_launch_more_a_target() -> None:
    report = bench_linear(shape="tiny", parts=("traffic",), dtypes=("bfloat16",), quiet=True)
    cases: dict[str, Any] = {entry["system"]: entry for entry in report["cases"]}
    assert set(cases) == {"base", "roadint", f"bmm LoRA r={RANK}"}
    sizes = SHAPES["tiny"]
    width, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], 2
    outputs = layers * (5 * width + 2 * inner)
    inputs = layers * (6 * width + inner)
    rows, targets = 8, 7 * layers
    ours, lora = cases["roadint"], cases[f"bmm LoRA r={RANK}"]
    assert ours["launches_beside"] == targets
    beside = 2 * 2 * rows * outputs + 8 * rows * targets + 8 * rows * outputs // 2
    base = cases["base"]["mb"]
    assert round(1e6 * (ours["mb"] - base)) == beside
    assert lora["launches_beside"] == 2 * targets
    # x and A in, A x out and in, B and the output in, the output out; bfloat16
    moved = rows * (inputs + RANK * inputs + 2 * RANK * targets + RANK * outputs + 2 * outputs)
    assert round(1e6 * (lora["mb"] - base)) == 2 * moved
    assert ours["mb_over_base"] < lora["mb_over_base"]
