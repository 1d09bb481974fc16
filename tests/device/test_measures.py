"""Evaluation, inspection, the app's batches and the command line on another device than the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import roadint
from roadint import RoadIntervention, RoadModel
from roadint.demo.batching import Batcher
from roadint.demo.requests import AnswerSettings
from roadint.evaluation.divergence import divergence
from roadint.evaluation.likelihood import reference_nll
from roadint.grammar.composition import Composition
from roadint.inspection.angles import adapter_values, intervention_values
from roadint.inspection.lens import logit_lens, next_tokens
from roadint.inspection.pilot import PilotClassifier, direction_change, magnitude_change
from tests.device.helpers import check_same, road_on, turned
from tests.helpers import HALVES, call, check_drawn

ROWS = [{"instruction": f"say {index}", "output": "ab" * (2 + index)} for index in range(4)]


def road_at(device: torch.device) -> RoadModel:
    return road_on(device, RoadIntervention(layer=1, subspaces=HALVES, position="last(2)"))


def test_likelihood_and_divergence(tokenizer: Any) -> None:
    def measure(device: torch.device) -> Any:
        road = road_at(device)
        compositions = [Composition.parse(text, road.names) for text in (None, "a", "a + b")]
        asked = (road, tokenizer, ROWS, compositions)
        nll = [list(map(float, each)) for each in reference_nll(*asked, batch_size=2)]
        return nll, divergence(*asked, batch_size=2)

    check_same(measure)


def test_evaluate(tokenizer: Any) -> None:
    pytest.importorskip("py3langid")

    def measure(device: torch.device) -> Any:
        report = roadint.evaluate(
            road_at(device),
            tokenizer,
            {"a": ROWS, "other": ROWS[:2]},
            ["One?", "Two?"],
            expect={"a": "en"},
            max_new_tokens=4,
            rows=4,
            quiet=True,
        )
        return report.nll, report.shares

    check_same(measure)


def test_next_tokens_and_the_logit_lens(tokenizer: Any) -> None:
    def look(device: torch.device) -> Any:
        road = road_at(device)
        shown = next_tokens(road, tokenizer, "abc", ["a", "none", "a + b"], count=4)
        lens = logit_lens(road, tokenizer, "abc", [None, "a + b"])
        texts = [[token.text for token in each.top] for each in shown]
        return texts, [each.kl for each in shown], [[token.text for token in row] for row in lens]

    check_same(look)


def test_values_of_blocks() -> None:
    def look(device: torch.device) -> Any:
        road = road_at(device)
        road.add_adapter("x", layers=[1])
        turned(road.adapters)
        values = intervention_values(road.interventions[0])
        adapter = road.adapters["x"]
        return values["subspaces"], adapter_values(adapter.spec(), adapter.theta, adapter.alpha)

    check_same(look)


def test_pilot_studies() -> None:
    def study(device: torch.device) -> Any:
        torch.manual_seed(0)
        states, other = (torch.randn(6, 8).to(device) for _ in "ab")
        classifier = PilotClassifier(8, 2, "angle").eval().to(device)
        return (
            magnitude_change(states, other),
            direction_change(states, other),
            classifier(states).detach(),
        )

    check_same(study)


def test_the_batches_of_the_app(tokenizer: Any) -> None:
    def ask(device: torch.device) -> Any:
        road = road_at(device)
        batcher = Batcher(road, tokenizer)
        parsed = [Composition.parse(text, road.names) for text in (None, "a", "a + b")]
        *_, last = batcher.answers("say it", parsed, AnswerSettings(4))
        return last.texts

    check_same(ask)


def test_the_command_line(
    base: str,
    tmp_path: Path,
    device: torch.device,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Train, inspect, generate, eval: on the device, since it is there."""
    run, rows = str(tmp_path / "run"), tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "prompts.txt").write_text("One?\nTwo?\n")
    data = ["--data", f"german={rows}", "--data", f"english={rows}"]
    settings = ["layers=[1]", "epochs=1", "batch_size=4", "max_completion=8"]
    train = ["train", "composition", "--model", base, *data, "--out", run]
    commands = [
        [*train, *(word for each in settings for word in ("--set", each))],
        ["inspect", run, "--plot", str(tmp_path / "angles.png")],
        ["generate", run, "One?", "--compose", "none", "--compose", "german", "--max-new-tokens", "3"],
        ["eval", run, "--prompts", str(tmp_path / "prompts.txt"), *data, "--rows", "2", "--max-completion", "4"],
    ]  # fmt: skip
    for command in commands:
        code, _, errors = call(capsys, monkeypatch, *command, "--json")
        assert code == 0, errors
    check_drawn(tmp_path / "angles.png")
