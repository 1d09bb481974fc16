"""Every benchmark on another device than the CPU: all systems run there, wait for it, and name it."""

from typing import Any

import pytest
import torch

from roadint import Recipe
from roadint.bench.align import bench_align
from roadint.bench.generate import bench_generate
from roadint.bench.learn import bench_learn
from roadint.bench.linear import bench_linear
from roadint.bench.train_systems import SYSTEMS, TrainingJob
from tests.other_device import waits

NAME = "a device for tests"


def failed(report: dict[str, Any]) -> set[tuple[str, Any]]:
    return {(each["system"], each["dtype"]) for each in report["cases"] if "error" in each}


@pytest.mark.xfail(strict=False, reason="made on the CPU, or named so")
@pytest.mark.parametrize("system", SYSTEMS)
def test_train(system: str, base: str, device: torch.device) -> None:
    job = TrainingJob(base, layer=1, rows=4, max_completion=8, batch_size=4)
    made = SYSTEMS[system](job)
    assert made.device == device
    made.prepare_job()
    made.prepare_random(8, 4, 4, 2)
    with waits() as counted:
        seconds, loss = made.step(0)
    assert seconds > 0
    assert loss == loss
    assert any("synchronize" in wait for wait in counted)
    assert made.machine()["processor"] == NAME
    assert made.peak_mb() == 500


@pytest.mark.xfail(strict=False, reason="made on the CPU, or named so")
def test_the_systems_of_train_start_at_one_loss(base: str, device: torch.device) -> None:
    losses = []
    for make in SYSTEMS.values():
        system = make(TrainingJob(base, layer=1, rows=4, max_completion=8, batch_size=4))
        system.prepare_random(8, 4, 4, 2)
        losses.append(system.step(0)[1])
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)


@pytest.mark.xfail(strict=False, reason="made on the CPU, or named so")
def test_generate(base: str, device: torch.device) -> None:
    with waits() as counted:
        report = bench_generate(
            base, batch_size=4, new_tokens=2, compositions=(1, 4), runs=2, quiet=True
        )
    assert report["machine"]["processor"] == NAME
    assert sum("synchronize" in wait for wait in counted) >= 4 * 3


@pytest.mark.xfail(strict=False, reason="made on the CPU, or named so")
@pytest.mark.parametrize("part", ["layer", "decode", "memory", "merge"])
def test_linear(part: str, base: str, device: torch.device) -> None:
    pytest.importorskip("peft")
    with waits() as counted:
        report = bench_linear(
            base, parts=(part,), widths=(32,), dtypes=("float32",), runs=1, steps=2, quiet=True
        )
    assert report["machine"]["processor"] == NAME
    assert failed(report) == set()
    assert part == "memory" or any("synchronize" in wait for wait in counted)


def test_align(device: torch.device) -> None:
    report = bench_align(16, steps=4, batch_size=8, task_steps=4, quiet=True)
    assert report["machine"]["processor"] == NAME


@pytest.mark.xfail(strict=False, reason="made on the CPU, or named so")
def test_learn(classifier: str, sentiment: dict[str, str], device: torch.device) -> None:
    pytest.importorskip("peft")
    settings = {"task": "sst2", "model": classifier, "epochs": 1, "batch_size": 16, "rows": 32}
    report = bench_learn(
        Recipe.load("glue", settings),
        sentiment,
        methods=["road_2", "lora", "ia3"],
        seeds=(1,),
        quiet=True,
    )
    assert report["machine"]["processor"] == NAME
