"""Every benchmark on another device than the CPU: all systems run there, wait for it, and name it."""

import time
from typing import Any

import pytest
import torch

from roadint import Recipe
from roadint.bench.align import bench_align
from roadint.bench.generate import bench_generate
from roadint.bench.learn import bench_learn
from roadint.bench.linear import bench_linear
from roadint.bench.paper import bench_paper
from roadint.bench.train_systems import SYSTEMS, TrainingJob


@pytest.fixture
def ends(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the host waited until the device had done everything."""
    found: list[float] = []
    wait = torch.cuda.synchronize

    def noted(*args: Any) -> None:
        wait(*args)
        found.append(time.perf_counter())

    monkeypatch.setattr(torch.cuda, "synchronize", noted)
    return found


def failed(report: dict[str, Any]) -> set[tuple[str, Any]]:
    return {(each["system"], each["dtype"]) for each in report["cases"] if "error" in each}


@pytest.mark.parametrize("system", SYSTEMS)
def test_train(system: str, base: str, device: torch.device, ends: list[float]) -> None:
    job = TrainingJob(base, layer=1, rows=4, max_completion=8, batch_size=4)
    made = SYSTEMS[system](job)
    assert made.device == device
    made.prepare_job()
    made.prepare_random(8, 4, 4, 2)
    before = len(ends)
    seconds, loss = made.step(0)
    assert seconds > 0
    assert loss == loss
    assert len(ends) > before
    assert made.machine()["processor"] == torch.cuda.get_device_name(device)
    assert made.peak_mb() > 0


def test_the_systems_of_train_start_at_one_loss(base: str, device: torch.device) -> None:
    losses = []
    for make in SYSTEMS.values():
        system = make(TrainingJob(base, layer=1, rows=4, max_completion=8, batch_size=4))
        system.prepare_random(8, 4, 4, 2)
        losses.append(system.step(0)[1])
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)


def test_generate(base: str, device: torch.device, ends: list[float]) -> None:
    report = bench_generate(
        base, batch_size=4, new_tokens=2, compositions=(1, 4), runs=2, quiet=True
    )
    assert report["machine"]["processor"] == torch.cuda.get_device_name(device)
    assert len(ends) >= 4 * 3


@pytest.mark.parametrize("part", ["layer", "decode", "memory", "merge"])
def test_linear(part: str, base: str, device: torch.device, ends: list[float]) -> None:
    pytest.importorskip("peft")
    report = bench_linear(
        base, parts=(part,), widths=(32,), dtypes=("float32",), runs=1, steps=2, quiet=True
    )
    assert report["machine"]["processor"] == torch.cuda.get_device_name(device)
    assert failed(report) == set()
    assert part == "memory" or ends


def test_align(device: torch.device) -> None:
    report = bench_align(16, steps=4, batch_size=8, task_steps=4, quiet=True)
    assert report["machine"]["processor"] == torch.cuda.get_device_name(device)


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
    assert report["machine"]["processor"] == torch.cuda.get_device_name(device)


@pytest.mark.parametrize("part", ["requests", "training"])
def test_paper(part: str, device: torch.device) -> None:
    pytest.importorskip("peft")
    few: dict[str, Any] = {"ranks": (1,), "lengths": (4,), "requests": (1, 2), "tokens": 2}
    few |= {"rows": 2, "runs": 1, "steps": 1, "training_steps": 1, "training_tokens": 4}
    report = bench_paper(
        "tiny", parts=(part,), modes=("eager",), dtype=torch.float32, quiet=True, **few
    )
    assert report["machine"]["processor"] == torch.cuda.get_device_name(device)
    assert report["cases"]
    failing = [each["system"] for each in report["cases"] if "error" in each]
    assert all("BOFT" in system for system in failing)  # PEFT compiles a kernel for it
