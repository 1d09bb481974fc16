"""Launches of a compiled step, and the parameters that it reads."""

from typing import Any

from roadint.bench.linear import bench_linear
from roadint.bench.linear_systems import RANK
from roadint.bench.shapes import SHAPES


def test_a_compiled_step_has_no_launch_more() -> None:
    report = bench_linear(shape="tiny", parts=("traffic",), dtypes=("float32",), quiet=True)
    cases: dict[str, Any] = {entry["system"]: entry for entry in report["cases"]}
    assert set(cases) == {"base", "roadint", f"bmm LoRA r={RANK}"}
    sizes = SHAPES["tiny"]
    width, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], 2
    outputs, inputs = layers * (5 * width + 2 * inner), layers * (6 * width + inner)
    rows, targets = 8, 7 * layers
    ours, lora, base = cases["roadint"], cases[f"bmm LoRA r={RANK}"], cases["base"]
    assert base["launches"] > targets
    assert ours["launches_beside"] <= 0, "the turn is fused with its neighbours"
    assert lora["launches_beside"] >= targets
    of_weights = 1e6 * base["parameter_mb"]
    assert round(1e6 * ours["parameter_mb"] - of_weights) == rows * 4 * outputs
    assert round(1e6 * lora["parameter_mb"] - of_weights) == rows * 4 * RANK * (inputs + outputs)
