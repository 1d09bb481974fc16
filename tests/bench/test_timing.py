"""Turns, the wait around timings, and what is compared with what."""

import time
from dataclasses import dataclass

import pytest
import torch

from roadint.bench.lengths import generation_seconds
from roadint.bench.report import case
from roadint.bench.timing import Stopwatch, compare, ratios_of, take_turns


@dataclass(frozen=True)
class System:
    name: str


BASE, OURS, BROKEN = System("base"), System("roadint"), System("broken")


def test_a_system_that_fails_is_told_and_the_others_run() -> None:
    seen: list[str] = []

    def once(system: System) -> float:
        seen.append(system.name)
        if system is BROKEN:
            raise RuntimeError("no half precision\nat all")
        return float(len(seen))

    times, errors = take_turns([BASE, BROKEN, OURS], once, 2, "", quiet=True)
    assert errors == {"broken": "no half precision"}
    assert seen == ["base", "broken", "roadint", "roadint", "base", "roadint", "base"]
    assert times == {"base": [5.0, 7.0], "roadint": [4.0, 6.0]}  # the first round warms up


def test_a_comparison_is_made_within_turns() -> None:
    """The machine slows down tenfold after the first turn that counts: the ratio does not feel it."""
    pace = {BASE: iter([7, 1.0, 10.0, 10.0]), OURS: iter([7, 3.0, 30.0, 30.0])}

    def once(system: System) -> float:
        if system is BROKEN:
            raise TypeError
        return float(next(pace[system]))

    cases = compare("step", [BASE, OURS, BROKEN], once, 3, {"rows": 8}, quiet=True)
    assert [entry.get("over_base") for entry in cases] == [1.0, 3.0, None]
    assert cases[1]["median_s"] == 30.0
    assert cases[2] == {"name": "step", "system": "broken", "error": "TypeError", "rows": 8}


def test_a_stopwatch_counts_its_block_alone() -> None:
    started = time.perf_counter()
    with Stopwatch(torch.device("cpu")) as watch:
        time.sleep(0.02)
    time.sleep(0.03)
    assert 0.02 <= watch.seconds <= time.perf_counter() - started - 0.03


def test_ratios_join_what_has_the_same_sizes_and_the_same_ending() -> None:
    def timed(system: str, seconds: float, rows: int = 8) -> dict[str, object]:
        return case("decode", system, [seconds], None, rows=rows)

    cases = [
        timed("base", 1.0),
        timed("roadint, 1 adapter", 2.0),
        timed("roadint, 8 adapters", 4.0),
        timed("PEFT, 8 adapters", 8.0),
        timed("PEFT, 64 adapters", 8.0, rows=64),
    ]
    found = {(entry["system"], entry["over"]): entry["value"] for entry in ratios_of(cases)}
    assert found == {
        ("roadint, 1 adapter", "base"): 0.5,
        ("roadint, 8 adapters", "base"): 0.25,
        ("roadint, 8 adapters", "PEFT, 8 adapters"): 2.0,
    }


@pytest.mark.parametrize(("start", "tokens"), [(0, 3), (5, 40), (30, 100)])
def test_a_generation_is_the_sum_of_its_steps(start: int, tokens: int) -> None:
    """Between lengths a step is on the line between its neighbours, outside of them as the nearest."""
    points = {4: 1.0, 20: 3.0, 60: 2.0}

    def step(length: int) -> float:
        if length <= 4:
            return 1.0
        if length <= 20:
            return 1.0 + 2.0 * (length - 4) / 16
        return 3.0 - (length - 20) / 40 if length <= 60 else 2.0

    by_hand = sum(step(length) for length in range(start, start + tokens))
    assert generation_seconds(points, start, tokens) == pytest.approx(by_hand)
