"""`roadint bench paper` on a tiny model: that it measures what the paper's figures show, and reports it."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from roadint.bench.paper import bench_paper, cache_lengths
from roadint.bench.paper_training import ALL_METHODS, training_cases
from roadint.bench.shapes import model_and_tokenizer
from tests.helpers import call, check_drawn

BOFT = "PEFT BOFT w=4 m=2"  # whose kernel needs nvcc
SMALL = "--shape tiny --mode eager --runs 2 --steps 2 --length 4 --length 8 --requests 1 --requests 2 --rank 1 --rank 4 --tokens 6 --training-tokens 12"  # fmt: skip


def test_every_part_is_measured_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plot = tmp_path / "paper.json", tmp_path / "paper.png"
    files = ["--out", str(out), "--plot", str(plot)]
    code, shown, errors = call(capsys, monkeypatch, "bench", "paper", *SMALL.split(), *files)
    assert code == 0, errors
    assert "tokens a second" in shown
    check_drawn(plot)
    check_drawn(tmp_path / "paper-training.png")
    report = json.loads(out.read_text())
    assert set(report) == {"machine", "job", "cases", "ratios"}
    cases = report["cases"]
    ranks = {entry["system"] for entry in cases if entry["name"] == "ranks"}
    assert ranks == {
        "base", "roadint RoAd1", "roadint RoAd2", "roadint RoAd4", "roadint RoAd1 merged", "LoRA r=8 merged",
        "bmm LoRA r=1", "bmm LoRA r=4", "PEFT LoRA r=1", "PEFT LoRA r=4",
    }  # fmt: skip
    shapes = {
        (entry["name"], entry["requests"], entry["tokens"]) for entry in cases if "requests" in entry
    }  # fmt: skip
    assert shapes == {
        ("ranks", 1, 6), ("lengths", 8, 4), ("lengths", 8, 8), ("requests", 1, 6), ("requests", 2, 6),
    }  # fmt: skip
    for entry in cases:
        if "tokens_per_s" in entry:
            per_s = entry["requests"] * entry["tokens"] / entry["median_s"]
            assert entry["tokens_per_s"] == pytest.approx(per_s, rel=0.01)
            assert entry["runs"] == 2
    failed = {
        (entry["name"], entry["system"], entry.get("requests"))
        for entry in cases
        if "error" in entry
    } - {("training", BOFT, None)}
    mixed = {("lengths", "PEFT RoAd", 8), ("requests", "PEFT RoAd", 2)}  # in bfloat16
    assert failed == mixed
    pairs = {(entry["name"], entry["system"], entry["over"]) for entry in report["ratios"]}
    assert ("ranks", "roadint RoAd1", "bmm LoRA r=4") in pairs
    assert ("lengths", "roadint", "PEFT LoRA r=8") in pairs
    assert ("training", "roadint RoAd1", "PEFT OFT w=2") in pairs


def test_reports_are_given_part_by_part() -> None:
    seen: list[set[str]] = []
    bench_paper(
        "tiny", parts=("requests", "training"), modes=("eager",), requests=(1,), tokens=2, runs=1, steps=1, training_steps=1, training_tokens=4,
        done=lambda report: seen.append({entry["name"] for entry in report["cases"]}), quiet=True,
    )  # fmt: skip
    assert seen == [{"requests"}, {"requests", "training"}]


def test_all_methods_train_on_the_same_tokens_from_the_same_model() -> None:
    """They start as the identity; roadint scores the token after the last too, on as many inputs."""
    base, tokenizer = model_and_tokenizer("", "tiny", torch.float32)
    before = [value.clone() for value in base.parameters()]
    methods = [name for name in ALL_METHODS if name != BOFT]
    cases = training_cases(base, tokenizer, methods, 2, 24, 2, quiet=True)
    assert [entry["system"] for entry in cases] == methods
    by_name: dict[str, Any] = {entry["system"]: entry for entry in cases}
    losses = {entry["loss"] for entry in cases if entry["system"].startswith("PEFT")}
    assert max(losses) - min(losses) < 1e-3
    ours = by_name["roadint RoAd1"]["loss"]
    assert ours == pytest.approx(median(losses), rel=0.01)
    numbers = {name: entry["numbers"] for name, entry in by_name.items()}
    outputs = 2 * (4 * 32 + 2 * 48 + 32)  # of the linear layers of two decoder layers
    assert numbers["roadint RoAd1"] == numbers["PEFT RoAd"] == outputs
    assert numbers["roadint RoAd4"] == 2 * numbers["roadint RoAd2"] == 4 * outputs
    inputs = 2 * (6 * 32 + 48)
    assert numbers["roadint RoAd1 + LoRA r=32"] == outputs + 32 * (inputs + outputs)
    assert numbers["PEFT LoRA r=128"] == 128 * (inputs + outputs)
    assert numbers["PEFT OFT w=2"] == inputs // 2
    assert numbers["PEFT OFT w=16"] == inputs // 16 * (16 * 15 // 2)
    for entry in cases:
        assert entry["hundred_steps_s"] == pytest.approx(
            50 * (entry["min_s"] + entry["max_s"]), rel=0.01
        )
        assert entry["beside_mb"] >= 0
    for value, old in zip(base.parameters(), before, strict=True):
        assert torch.equal(value, old)


def test_steps_are_timed_where_generations_need_them() -> None:
    assert cache_lengths("eager", (256, 4096)) == [32, 32 + 1024, 32 + 4096]
    assert cache_lengths("graph", (4096, 256)) == [32 + 256, 32 + 4096]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "rank"], "unknown part 'rank'"),
        (["--shape", "llama"], "unknown shape 'llama'"),
        (["--mode", "graphs"], "unknown mode 'graphs'"),
        (["--method", "PEFT LoRA"], "unknown method 'PEFT LoRA'"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, _, errors = call(capsys, monkeypatch, "bench", "paper", *arguments)
    assert code == 2
    assert message in errors
