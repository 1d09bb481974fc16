"""The benchmarks: that they compare the same thing, count what they say, and report in the form that others read."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.bench.flops import needed_flops
from roadint.bench.generate import bench_generate
from roadint.bench.halves import HALVES, block_strengths
from roadint.bench.machine import matmul_rate
from roadint.bench.pyvene_road import pyreft_loss, wrap_in_pyvene
from roadint.bench.report import case, ratio
from roadint.bench.train_systems import PyveneTraining, TrainingJob, labelled_batch
from roadint.bench.turns import in_turns, rounds
from roadint.bench.workers import workers
from roadint.cli.bench.output import keep_report
from roadint.data.collate import Collator, Example, completion_nll
from roadint.errors import first_line
from roadint.training.prefix.cache import PrefixCache
from tests.helpers import VOCABULARY, WIDTH, build, call, check_drawn


def rows(count: int = 5) -> list[Example]:
    draw = torch.Generator().manual_seed(0)
    compositions = ["german", "english", "0.5*german + english", "none", "german - english"]
    return [
        Example(
            *torch.randint(3, VOCABULARY, (2, 6 + index), generator=draw).tolist(),
            compositions[index % 5],
        )
        for index in range(count)
    ]


def test_plain_pyvene_computes_the_same_loss_and_gradients(tokenizer: Any) -> None:
    model = build("gemma3").requires_grad_(False)
    road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES))
    ours = road.interventions[0]
    intervenable, plain = wrap_in_pyvene(model, 1, WIDTH)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value, copy in zip(ours.parameters(), plain.parameters(), strict=True):
            value.add_(0.3 * torch.randn(value.shape, generator=draw))
            copy.copy_(value)
    strengths = [block_strengths(row.composition, WIDTH) for row in rows()]
    batch = labelled_batch(rows(), 0, torch.device("cpu"))
    loss = pyreft_loss(intervenable, rows(), strengths, batch)
    loss.backward()
    expected = completion_nll(road, Collator(tokenizer)(rows()))[0].mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(plain.theta.grad, ours.theta.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plain.alpha.grad, ours.alpha.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.skipif(
    torch.__version__ < "2.9", reason="older ones count attention with grouped heads otherwise"
)
def test_operations_are_counted_as_torch_counts_them(
    architecture: str, tokenizer: Any, tmp_path: Path
) -> None:
    """One row, so that there is no padding; torch counts all pairs of query and key, also those that the mask forbids."""
    model = build(architecture).requires_grad_(False)
    road, row = RoadModel(model, RoadIntervention(layer=0, subspaces=HALVES)), rows(1)
    cache = PrefixCache.build(road, row, Collator(tokenizer), folder=tmp_path)
    batch = cache(row)
    with FlopCounterMode(display=False) as counter:
        cache.nll(road, batch)[0].sum().backward()
    counted = {str(key): value for key, value in counter.get_flop_counts()["Global"].items()}
    linear = sum(value for key, value in counted.items() if "bmm" not in key)
    attention = counter.get_total_flops() - linear
    pairs = len(row[0].completion) * (len(row[0].inputs))
    needed = needed_flops(model, 1, row)
    masked = len(row[0].completion) * (len(row[0].completion) - 1) / 2
    assert attention == 12 * pairs * WIDTH * 2
    assert needed == linear + attention - 12 * masked * WIDTH * 2


def test_bench_train_reports_what_tools_read(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = f"--model {base} --layer 1 --rows 8 --max-completion 8 --steps 2 --epochs 3".split()
    systems = ["--system", "pyvene", "--system", "bare model, forward only"]
    command = [
        "bench",
        "train",
        *arguments,
        *systems,
        "--json",
        "--out",
        str(out),
        "--plot",
        str(plot),
    ]
    code, shown, _ = call(capsys, monkeypatch, *command)
    assert code == 0
    report = json.loads(shown)
    assert report == json.loads(out.read_text())
    check_drawn(plot)
    assert {"processor", "cores", "matmul_gflops", "dtype", "torch"} <= set(report["machine"])
    assert [(entry["name"], entry["system"]) for entry in report["cases"]] == [
        (name, system)
        for system in ("roadint", "pyvene", "bare model, forward only")
        for name in ("step", "whole job")
    ]
    for entry in report["cases"]:
        assert 0 < entry["min_s"] <= entry["median_s"] <= entry["max_s"]
        assert entry["peak_mb"] > 10
        assert entry["runs"] == (2 if entry["name"] == "step" else 1)
    ours, whole = report["cases"][0], report["cases"][1]
    assert 0 <= ours["matmul_fraction"] < 1
    assert whole["steps"] == 3 * 2
    assert whole["median_s"] == pytest.approx(whole["preparation_s"] + 6 * ours["mean_s"], abs=0.02)
    cases = {(entry["name"], entry["system"]): entry for entry in report["cases"]}
    assert {(entry["name"], entry["over"]) for entry in report["ratios"]} == {
        key for key in cases if key[1] != "roadint"
    }
    for entry in report["ratios"]:
        key = "mean_s" if entry["name"] == "step" else "median_s"
        assert entry["value"] == pytest.approx(
            cases[entry["name"], entry["over"]][key] / cases[entry["name"], "roadint"][key],
            rel=0.01,
        )


def test_bench_generate_reports_what_tools_read(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = f"--model {base} --batch-size 4 --new-tokens 3 --compositions 1 --compositions 4 --runs 2".split()
    code, shown, _ = call(
        capsys, monkeypatch, "bench", "generate", *arguments, "--out", str(tmp_path / "bench.json")
    )
    assert code == 0
    assert "4 compositions" in shown
    assert "× as fast" in shown
    report = json.loads((tmp_path / "bench.json").read_text())
    expected = [
        ("untouched", "bare model"),
        ("1 composition", "roadint"),
        ("4 compositions", "roadint"),
        ("1 composition", "pyvene"),
    ]
    assert [(entry["name"], entry["system"]) for entry in report["cases"]] == expected
    assert all(entry["runs"] == 2 for entry in report["cases"])
    assert [entry["over"] for entry in report["ratios"]] == ["bare model", "bare model", "pyvene"]


def test_no_more_compositions_than_rows_are_told(base: str) -> None:
    report = bench_generate(
        base, batch_size=2, new_tokens=1, runs=1, compositions=(1, 8, 64), quiet=True
    )
    ours = [case["name"] for case in report["cases"] if case["system"] == "roadint"]
    assert ours == ["1 composition", "2 compositions"]


def test_a_shape_trains_and_generates_on_random_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bench.json"
    sizes = "--shape tiny --layer 0 --prompt 9 --max-completion 5 --batch-size 4 --steps 5"
    only = ["--system", "roadint, compiled", "--out", str(out)]
    code, _, errors = call(capsys, monkeypatch, "bench", "train", *sizes.split(), *only)
    assert code == 0, errors
    report = json.loads(out.read_text())
    step, whole = report["cases"][:2]
    assert (step["runs"], whole["steps"]) == (5, 4 * 5)
    systems = [entry["system"] for entry in report["cases"] if entry["name"] == "step"]
    assert systems == ["roadint", "roadint, compiled"]  # at one loss, else there is no report
    assert report["machine"]["dtype"] == "bfloat16"
    sizes = "--shape tiny --batch-size 3 --new-tokens 2 --compositions 3 --runs 2"
    code, _, errors = call(
        capsys, monkeypatch, "bench", "generate", *sizes.split(), "--out", str(out)
    )
    assert code == 0, errors
    report = json.loads(out.read_text())
    assert (report["job"]["model"], report["job"]["columns"]) == ("tiny", 64)
    over = {entry["system"]: entry["over_base"] for entry in report["cases"]}
    assert over["bare model"] == 1.0
    found = {entry["over"]: entry["value"] for entry in report["ratios"]}
    assert found["bare model"] == pytest.approx(1 / over["roadint"], abs=2e-3)


def test_bench_align_finds_the_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small network: log2(width) rotations as right as a full rotation, one rotation not."""
    arguments = ["--width", "64", "--steps", "300", "--task-steps", "600"]
    code, shown, _ = call(
        capsys, monkeypatch, "bench", "align", *arguments, "--out", str(tmp_path / "align.json")
    )
    assert code == 0
    assert "interchange accuracy" in shown
    report = json.loads((tmp_path / "align.json").read_text())
    assert report["job"]["task_accuracy"] > 0.97
    single, stages, twice, full, low, boundless = report["cases"]
    assert [entry["numbers"] for entry in (single, stages, twice, full)] == [
        32,
        6 * 32,
        12 * 32,
        64 * 64,
    ]
    assert stages["accuracy"] > single["accuracy"] + 0.05
    assert twice["accuracy"] > max(0.8, full["accuracy"] - 0.03)
    assert [entry["over"] for entry in report["ratios"]] == [
        entry["system"] for entry in (full, low, boundless)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["align", "--width", "30"], r"width 30: expected a multiple of 4"),
        (
            ["align", "--rival", "RotatedSpce"],
            r"unknown rival 'RotatedSpce': .*did you mean 'RotatedSpace'",
        ),
        (["train", "--system", "pyven"], r"unknown system 'pyven': .*did you mean 'pyvene'"),
        (["train", "--shape", "llama"], r"unknown shape 'llama'"),
        (["train", "--plot", "bench.txt"], r"--plot bench.txt: expected a .png, .svg or .pdf file"),
        (
            ["generate", "--out", "nowhere/bench.json"],
            r"--out nowhere/bench.json: the folder nowhere does not exist",
        ),
        (
            ["train", "--data", "french=x.jsonl"],
            r"--data names 'french': expected german and english",
        ),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(capsys, monkeypatch, "bench", *arguments)
    assert code == 2
    assert re.search(message, errors)


def test_a_failing_system_is_named_with_its_error(tmp_path: Path) -> None:
    with (
        workers({"pyvene": PyveneTraining}, TrainingJob(str(tmp_path / "no-model"))) as (worker,),
        pytest.raises(RoadError, match=r"(?s)of pyvene failed:.*no-model"),
    ):
        worker.ask("prepare_job")


def test_figures_of_merit() -> None:
    assert case("step", "roadint", [3.0, 1.0, 2.0], None, rows=8) == {
        "name": "step", "system": "roadint", "median_s": 2.0, "min_s": 1.0, "max_s": 3.0, "runs": 3, "peak_mb": None, "rows": 8,
    }  # fmt: skip
    assert ratio("step", "pyvene", 6.0, 2.0) == {"name": "step", "over": "pyvene", "value": 3.0}
    assert [in_turns(["a", "b", "c"], number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    taken = list(rounds(["a", "b"], 2, "", quiet=True))
    assert taken == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert matmul_rate(torch.device("cpu"), torch.float32, runs=1) > 1e8


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["learn", "glue", "--set", "lr=1e-3"], "--set lr would not act here: expected --rate"),
        (["learn", "glue", "--set", "edit.variant=road_4"], "--set variant .*expected --method"),
        (["pilot", "--set", "seed=9"], "--set seed would not act here: expected --seed"),
        (["compose", "composition", "--set", "seed=9"], "--set seed would not act here"),
        (["linear", "--mode", "generate"], "--mode is for the steps of a shape"),
        (["linear", "--part", "merge", "--plot", "x.png"], "--plot draws the parts"),
        (["linear", "--shape", "tiny", "--part", "decode", "--mode", "graph"], "mode graph needs a GPU"),
        (["paper", "--shape", "tiny", "--mode", "graph"], "mode graph needs a GPU"),
        (["train", "--shape", "tiny", "--rows", "4"], "--shape has rows of its own"),
        (["train", "--prompt", "64"], "expected --shape"),
    ],
)  # fmt: skip
def test_options_that_would_not_act_are_refused(
    command: list[str], message: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, errors = call(capsys, monkeypatch, "bench", *command)
    assert (code, out, len(errors.splitlines())) == (2, "", 1)
    assert re.search(message, errors)


class Failing:
    def fail(self) -> None:
        raise ValueError("no such option")


class Dying:
    def wait(self) -> None:
        os._exit(3)


def test_a_failure_says_why_in_its_first_line() -> None:
    with workers({"one": Failing}) as (worker,), pytest.raises(RoadError) as told:
        worker.ask("fail")
    assert first_line(told.value) == "benchmark of one failed: ValueError: no such option"
    with workers({"two": Dying}) as (worker,):
        for _ in range(2):  # the second question finds nobody
            with pytest.raises(RoadError, match="benchmark of two ended early"):
                worker.ask("wait")


def test_a_picture_that_can_not_be_drawn_loses_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RoadError("no picture")

    monkeypatch.setattr("roadint.plots.bench_figure", broken)
    shown: list[str] = []
    with pytest.raises(RoadError, match="no picture"):
        keep_report({"cases": []}, tmp_path / "r.json", tmp_path / "p.png", False, "bench_figure", show=lambda _: shown.append("table"))  # fmt: skip
    assert shown == ["table"]
    assert (tmp_path / "r.json").is_file()
