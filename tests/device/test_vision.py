"""Rows with images on another device than the CPU: mixed batches, likelihood, training, what a step waits for."""

from pathlib import Path
from typing import Any

import pytest
import torch

import roadint
from roadint import RoadIntervention, RoadModel
from roadint.data.collate import completion_nll, moved
from roadint.data.image_text.collate import ImageTextCollator, tokenize_conversations
from roadint.data.image_text.conversations import checked_conversation
from tests.device.helpers import check_same, turned
from tests.helpers import HALVES
from tests.other_device import waits
from tests.vision import MODELS, image, inputs_of, llava, processor

ROWS = [
    {"image": image(1), "instruction": "what?", "output": "abab"},
    {"instruction": "why?", "output": "so"},
    {"image": [image(2), image(3)], "instruction": "these?", "output": "b"},
]


def adapted(device: torch.device, name: str = "llava") -> RoadModel:
    road = RoadModel(MODELS[name]().to(device), RoadIntervention(layer=1, subspaces=HALVES))
    road.add_adapter("x")
    turned(road.interventions)
    turned(road.adapters)
    return road.eval()


@pytest.mark.parametrize("name", MODELS)
def test_mixed_batches(name: str) -> None:
    def run(device: torch.device) -> Any:
        road = adapted(device, name)
        inputs = {key: value.to(device) for key, value in inputs_of(road.model, [1, 0, 2]).items()}
        compose = ["a + x", None, "0.5*x"]
        tokens = road.generate(**inputs, compose=compose, max_new_tokens=3, do_sample=False)
        logits = road(**inputs, compose=compose).logits
        logits.square().mean().backward()
        gradients = [each.grad for each in road.trained_parameters()]
        return tokens, logits.detach(), gradients

    check_same(run)


def batch_of(compositions: list[str | None]) -> dict[str, Any]:
    reader = processor()
    rows = [checked_conversation(row) for row in ROWS]
    examples = tokenize_conversations(rows, reader, "x", template="chat", max_length=99)
    return {**ImageTextCollator(reader)(examples), "compose": compositions}


def test_the_likelihood_of_answers() -> None:
    def run(device: torch.device) -> Any:
        nll, rows = completion_nll(adapted(device), moved(batch_of(["a", None, "x"]), device))
        return nll.detach(), rows

    check_same(run)


def test_an_adapter_trains(tmp_path: Path) -> None:
    def run(device: torch.device) -> Any:
        road = roadint.add_linear_road(llava().to(device), name="x")
        settings: dict[str, Any] = {"batch_size": 3, "epochs": 2, "lr": 0.01, "quiet": True}
        roadint.train(road, processor(), {"x": ROWS}, "llava", **settings)
        return [each.detach() for each in road.trained_parameters()]

    check_same(run)


def test_a_step_waits_where_the_model_itself_does(device: torch.device) -> None:
    """Which looks for its images among the tokens; roadint adds nothing."""
    road = adapted(device).train()
    batch = moved(batch_of(["a + x", None, "x"]), device)
    with waits() as plain:
        completion_nll(road, {**batch, "compose": None})
    with waits() as composed:
        completion_nll(road, batch)
    assert len(composed) == len(plain)
