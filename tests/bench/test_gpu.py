"""`roadint bench gpu` on a tiny model: that a bar says what was measured, and nothing is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from roadint.bench.bars import Bar, bars_of
from roadint.bench.gpu import Sizes, _errors_of, bench_gpu, stages_of
from roadint.bench.report import case, ratio
from tests.helpers import call

TINY = Sizes("tiny", 1, 1, 2, (8, 4), (4, 6, 4), (2, 8), (16,), (6, 2))


def test_what_is_measured_stands_beside_its_bar(tmp_path: Path) -> None:
    stages = ("decode", "adapters", "generate", "align-16", "merge")
    result = bench_gpu(tmp_path, TINY, stages=stages, quiet=True)
    assert set(result["stages"]) == set(stages)
    assert all(isinstance(seconds, float) for seconds in result["stages"].values()), result
    assert json.loads((tmp_path / "bars.json").read_text()) == result
    assert not any("roadint" in error for error in result["errors"])
    reports = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in stages}
    values = {bar["name"]: bar["value"] for bar in result["bars"]}
    missing = {name for name, value in values.items() if value is None}
    elsewhere = ("graph", "compiled", "training step")  # a GPU, and other processes
    if torch.cuda.is_available():
        elsewhere = elsewhere[1:]
    assert all(any(word in name for word in elsewhere) for name in missing)
    prefill = next(
        entry for entry in reports["decode"]["cases"] if (entry["name"], entry["system"]) == ("prefill", "roadint")
    )  # fmt: skip
    assert values["prefill, over bare"] == prefill["over_base"]
    rotations = {entry["system"]: entry["median_s"] for entry in reports["align-16"]["cases"]}
    assert values["interchange, width 16, full DAS over ours"] == pytest.approx(
        rotations["pyvene RotatedSpace"] / rotations["roadint, 8 rotations"], rel=1e-3
    )


def test_bars_of_training_and_compiled_steps_are_read() -> None:
    """Stages that a CPU has no time or no way to run: from reports of the same form."""
    train: dict[str, Any] = {
        "cases": [
            case("step", "roadint", [0.02], None),
            case("step", "roadint, compiled", [0.04], None),
            case("step", "pyvene", [0.1], None),
        ],
        "ratios": [ratio("step", "pyvene", 0.1, 0.02)],
    }
    steps = {"base": 7.5e-3, "roadint, 8 adapters": 8e-3}
    graphs = {"base": 8e-3, "bmm LoRA r=8, 8 adapters": 11e-3, "roadint, 8 adapters": 9e-3}
    cases = [
        case(
            "decode",
            name,
            [seconds],
            None,
            over_base=seconds / of["base"],
            rows=8,
            mode=mode,
        )
        for mode, of in (("generate", steps), ("graph", graphs))
        for name, seconds in of.items()
    ]
    reports: dict[str, Any] = {
        "train": train,
        "compiled-8": {"cases": cases, "ratios": []},
        "decode": {"cases": cases, "ratios": []},
    }
    found = {
        bar.name: bar.verdict(reports) for bar in bars_of((), 64) if bar.stage in reports
    }  # fmt: skip
    told = {name: (bar["value"], bar["reached"]) for name, bar in found.items() if bar["value"]}
    what = "decode, 8 rows, 8 adapters"
    assert told == {
        f"{what}, compiled, over the bare model": (round(8 / 7.5, 4), True),
        f"{what}, compiled, over bmm LoRA's graph": (round(8 / 11, 4), True),
        f"{what}, graph by hand, over bare": (9 / 8, False),
        f"{what}, graph, over bmm LoRA": (round(9 / 11, 4), False),
        "training step, pyvene's over ours": (5.0, True),
        "training step, seconds": (0.02, True),
        "training step, compiled, pyvene's over ours": (2.5, False),
        "training step, compiled, seconds": (0.04, False),
    }


def test_a_bar_is_reached_at_its_limit_and_open_without_a_report() -> None:
    more = Bar("merge", "merge", lambda report: report["times"], 10.0, at_most=False)
    assert more.verdict({"merge": {"times": 10.0}})["reached"] is True
    assert more.verdict({"merge": {"times": 9.9}})["reached"] is False
    assert more.verdict({})["reached"] is None
    less = Bar("step", "step", lambda report: report["times"], 1.08)
    assert [less.verdict({"step": {"times": t}})["reached"] for t in (1.08, 1.1)] == [True, False]


def test_a_stage_that_dies_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Sizes("tiny", 99, 1, 1, (2, 2), (2, 2, 2), (1, 4), (6,), (2, 1))
    result = bench_gpu(tmp_path, broken, stages=("generate", "align-6", "adapters"), quiet=True)
    assert "RoadError" in result["stages"]["generate"]  # there is no layer 99
    assert "width 6" in result["stages"]["align-6"]
    report = {
        "cases": [{"name": "decode", "system": "bmm", "error": "no room"}, {"system": "base"}]
    }
    assert _errors_of("decode", report) == ["decode, decode, bmm: no room"]
    assert isinstance(result["stages"]["adapters"], float)
    assert not (tmp_path / "generate.json").exists()
    late = bench_gpu(tmp_path / "late", TINY, stages=("merge",), seconds=-1, quiet=True)
    assert late["stages"] == {"merge": "no time was left"}
    assert (tmp_path / "late" / "bars.json").exists()


def test_the_command_shows_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--shape", "tiny", "--stage", "merge", "--out", str(tmp_path)]
    code, shown, errors = call(capsys, monkeypatch, "bench", "gpu", *arguments)
    assert code == 0, errors
    assert "merge, PEFT's over ours" in shown
    assert "not measured" in shown
    code, _, errors = call(capsys, monkeypatch, "bench", "gpu", "--shape", "tiny", "--stage", "x")
    assert (code, "unknown stage 'x'" in errors) == (2, True)
    if not torch.cuda.is_available():
        code, _, errors = call(capsys, monkeypatch, "bench", "gpu")
        assert (code, "expected a GPU, or --shape" in errors) == (2, True)


def test_every_bar_has_a_stage() -> None:
    known = {*stages_of(Sizes()), "compiled-8", "compiled-64"}
    assert {bar.stage for bar in bars_of(Sizes().widths, 64)} <= known
