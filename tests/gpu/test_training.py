"""A training step as a GPU wants it: compiled layers, storage on the host, rows that fit."""

from typing import Any

import pytest
import torch

import roadint
from roadint import RoadIntervention, RoadModel
from tests.helpers import HALVES, SHORT, build, rows

DATA = {"a": rows("abab"), "b": rows("xyz")}


def trained(device: torch.device, tokenizer: Any, **settings: Any) -> RoadModel:
    edits = [RoadIntervention(layer=layer, subspaces=HALVES, basis="random") for layer in (0, 1)]
    model = build().requires_grad_(False)
    model.set_attn_implementation("eager")  # rounds alike: Adam makes much of small differences
    road = RoadModel(model.to(device), edits)
    roadint.train(road, tokenizer, DATA, **{**SHORT, **settings})
    return road


@pytest.mark.parametrize(
    "settings",
    [
        {"compile": True},
        {"compile": True, "prefix_reuse": False},
        {"prefix_memory": 1e-6},
        {"micro_batch": 1},
        {"micro_batch": "auto"},
    ],
    ids=str,
)
def test_settings_change_no_number(
    settings: dict[str, Any], device: torch.device, tokenizer: Any
) -> None:
    expected, road = trained(device, tokenizer), trained(device, tokenizer, **settings)
    for found, value in zip(road.trained_parameters(), expected.trained_parameters(), strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=2e-3)
    if "prefix_memory" in settings:
        assert road.training_summary["prefix_reuse"]["storage"] == "host memory"


def test_all_rows_that_fit_run_at_once(device: torch.device, tokenizer: Any) -> None:
    road = trained(device, tokenizer, micro_batch="auto")
    assert road.training_summary["micro_batch"] == SHORT["batch_size"]
