"""The benchmarks of adapters on linear layers: that all systems compute what they say, and the form of the reports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from roadint.bench.linear import bench_linear
from roadint.bench.linear_systems import (
    SingleLinear,
    base_system,
    bmm_lora_system,
    peft_lora_system,
    peft_road_system,
    road_system,
)
from roadint.bench.machine import default_device
from roadint.bench.steps import modes_on
from tests.helpers import call, check_drawn


@pytest.mark.parametrize("make", [road_system, bmm_lora_system, peft_road_system, peft_lora_system])
def test_rows_have_adapters_of_their_own(make: Any) -> None:
    """In every system a mixed batch is what its rows give alone, and no adapter gives what the base or another gives."""
    torch.manual_seed(0)
    layer = SingleLinear(16, torch.float32, torch.device("cpu")).eval()
    x = torch.randn(4, 3, 16)
    with torch.no_grad():
        system = make(layer, ["layer"], 3)
        base = base_system(layer, ["layer"], 3).module(x)

        def run(rows: list[int]) -> torch.Tensor:
            with system.context(rows) as module:
                return module(x, **system.keywords(rows))

        mixed, alone = run([0, 2, 1, 2]), {number: run([number] * 4) for number in range(3)}
    for row, number in enumerate([0, 2, 1, 2]):
        torch.testing.assert_close(mixed[row], alone[number][row], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mixed[row], base[row], atol=1e-3)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_linear_reports_every_part(
    base: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    out, plot = tmp_path / "report.json", tmp_path / "plot.png"
    arguments = [
        "--model",
        base,
        "--width",
        "32",
        "--runs",
        "2",
        "--out",
        str(out),
        "--plot",
        str(plot),
    ]
    code, shown, errors = call(capsys, monkeypatch, "bench", "linear", *arguments)
    assert code == 0, errors
    report = json.loads(out.read_text())
    cases = report["cases"]
    assert {entry["name"] for entry in cases} == {"layer", "decode", "merge", "unmerge", "memory"}
    kept = {
        (entry["system"], entry["dtype"]): entry["copies_kept"]
        for entry in cases
        if entry["name"] == "memory"
    }
    assert kept["roadint", "float32"] <= 1.05
    assert kept["roadint", "bfloat16"] <= 1.05
    assert all(
        entry["over_base"] == 1
        for entry in cases
        if entry["system"] == "base" and "over_base" in entry
    )
    failed = {
        (entry["system"].partition(",")[0], entry["dtype"]) for entry in cases if "error" in entry
    }
    assert failed == {("PEFT RoAd", "bfloat16")}  # its mixed batches
    check_drawn(plot)
    assert "PEFT LoRA r=8" in shown


def test_learn_reports_every_method(
    classifier: str,
    sentiment: dict[str, str],
    tmp_path: Path,
    capsys: Any,
    monkeypatch: Any,
) -> None:
    out = tmp_path / "learn.json"
    data = ["--data", f"train={sentiment['train']}", "--data", f"dev={sentiment['dev']}"]
    settings = [
        "--set",
        "task=sst2",
        "--set",
        "epochs=1",
        "--set",
        "batch_size=16",
        "--rows",
        "32",
        "--seed",
        "1",
        "--seed",
        "2",
    ]
    code, _, errors = call(
        capsys, monkeypatch, "bench", "learn", "glue", "--model", classifier, *data, *settings, "--rate", "lora=1e-3", "--method", "road_2",
        "--method", "lora", "--method", "ia3", "--method", "head", "--out", str(out),
    )  # fmt: skip
    assert code == 0, errors
    cases = {entry["method"]: entry for entry in json.loads(out.read_text())["cases"]}
    assert list(cases) == ["road_2", "lora", "ia3", "head"]
    assert {entry["head"] for entry in cases.values()} == {66}
    assert cases["head"]["numbers"] == 0
    widths = 2 * (4 * 32 + 48 + 32) + 32
    assert (cases["road_2"]["numbers"], cases["ia3"]["numbers"]) == (2 * widths, widths)
    assert cases["lora"]["lr"] == 1e-3
    code, _, errors = call(
        capsys,
        monkeypatch,
        "bench",
        "learn",
        "glue",
        "--model",
        classifier,
        *data,
        "--method",
        "compacter",
    )
    assert (code, "method" in errors) == (2, True)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0, 2, 1, 2], [1, 1, 1, 1]])
def test_the_bmm_lora_is_a_dense_lora_a_row(rows: list[int]) -> None:
    layer = SingleLinear(16, torch.float32, torch.device("cpu")).eval()
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    system = bmm_lora_system(layer, ["layer"], 3, rank=5)
    with system.context(rows) as module:
        output, lora = module(x), module.layer.forward.__self__
        for row in range(4):
            a, b = (values[row] if values.ndim == 3 else values for values in (lora.a, lora.b))
            assert (a.shape, b.shape) == ((16, 5), (5, 16))
            dense = layer.layer.weight + (a @ b).T
            torch.testing.assert_close(output[row], x[row] @ dense.T)
            assert not torch.allclose(output[row], layer(x)[row], atol=1e-2)


def test_a_shape_is_measured_whole() -> None:
    report = bench_linear(
        shape="tiny", parts=("decode", "prefill", "merge"), dtypes=("bfloat16",), runs=1, steps=2, prefill=(3, 5), modes=("eager", "graph", "generate"), quiet=True,
    )  # fmt: skip
    cases = report["cases"]
    assert report["machine"]["device"] == default_device().type
    decodes = {(entry["rows"], entry["mode"]) for entry in cases if entry["name"] == "decode"}
    wanted = modes_on(default_device(), ("eager", "graph", "generate"))
    assert decodes == {(rows, mode) for rows in (8, 64) for mode in wanted}
    (base, ours) = [
        entry for entry in cases if entry["name"] == "prefill" and entry["system"] in ("base", "roadint")
    ]  # fmt: skip
    assert (base["rows"], base["tokens"], base["over_base"]) == (3, 5, 1.0)
    assert ours["median_s"] > 0
    merged = {
        (entry["name"], entry["system"]): entry for entry in cases if "merge" in entry["name"]
    }
    assert {entry["layers"] for entry in merged.values()} == {14}
    for entry in report["ratios"]:
        if entry["name"] == "merge":
            ours = merged["merge", entry["system"]]["median_s"]
            assert entry["value"] == pytest.approx(
                merged["merge", entry["over"]]["median_s"] / ours, rel=0.01
            )
    over_bmm = [entry for entry in report["ratios"] if "bmm" in entry["over"]]
    assert {entry["system"] for entry in over_bmm} == {"roadint", "roadint, 1 adapter", "roadint, 8 adapters"}  # fmt: skip
