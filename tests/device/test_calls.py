"""Edits of hidden states on another device than the CPU, in every call, against the CPU's numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import roadint
from roadint import (
    DireftIntervention,
    LoreftIntervention,
    RoadIntervention,
    RoadModel,
    SteeringIntervention,
)
from tests.device.helpers import check_same, road_on, turned
from tests.helpers import ARCHITECTURES, HALVES, IDS, VARIANTS, build, padded, prompts

COMPOSE = ["a", "a + 0.5*b", None, "b - a"]
POSITIONS = ["last(2)", "first", "all", "at(0, -1)"]
PROMPTS = ["How are you?", "Hi"]


def edit(**arguments: Any) -> RoadIntervention:
    return RoadIntervention(**{"layer": 1, "subspaces": HALVES, **arguments})


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_at_every_position(position: str, side: str) -> None:
    def forward(device: torch.device) -> Any:
        road = road_on(device, edit(position=position))
        inputs = {name: each.to(device) for name, each in batch.items()}
        road(**inputs, compose=COMPOSE).logits.square().mean().backward()
        gradients = [each.grad for each in road.interventions.parameters()]
        return road(**inputs, compose=COMPOSE).logits[batch["attention_mask"] == 1], gradients

    batch = padded(prompts([6, 3, 5, 4]), side)
    check_same(forward)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("phase", ["generated", "both"])
def test_generate_with_edits_of_what_is_generated(architecture: str, phase: str) -> None:
    def generate(device: torch.device) -> Any:
        road = road_on(device, edit(position="all", phase=phase), architecture=architecture)
        return road.generate(IDS.to(device), compose=COMPOSE, max_new_tokens=5, do_sample=False)

    check_same(generate)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
)
def test_generate_in_every_way(settings: dict[str, Any]) -> None:
    def generate(device: torch.device) -> Any:
        road = road_on(device, edit(position="last(2)"))
        return road.generate(
            IDS.to(device), compose=COMPOSE, max_new_tokens=4, do_sample=False, **settings
        )

    check_same(generate)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "arguments",
    [{"basis": "random"}, {"basis": "hadamard"}, {"pairing": "half"}, {"form": "interchange"}],
)
def test_every_form_of_a_rotation(variant: Any, arguments: dict[str, Any]) -> None:
    def forward(device: torch.device) -> Any:
        road = road_on(device, edit(variant=variant, **arguments))
        return road(IDS.to(device), compose=COMPOSE).logits

    check_same(forward)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LoreftIntervention(layer=1, rank=4, subspaces={"a": "[0, 2)", "b": "[2, 4)"}),
        lambda: DireftIntervention(layer=1, rank=4, subspaces={"a": "[0, 2)", "b": "[2, 4)"}),
        lambda: SteeringIntervention(layer=1, subspaces={"a": "[0, 1)", "b": "[1, 2)"}),
    ],
)
def test_other_kinds(make: Any) -> None:
    def forward(device: torch.device) -> Any:
        torch.manual_seed(3)
        road = road_on(device, make())
        logits = road(IDS.to(device), compose=["a", "a + b", None, "b"]).logits
        logits.square().mean().backward()
        return logits.detach(), [each.grad for each in road.interventions.parameters()]

    check_same(forward)


def test_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    def answer(device: torch.device) -> Any:
        road = road_on(device, edit(position="last(5)"))
        one = road.answer(tokenizer, PROMPTS, compose=["a", "b"], max_new_tokens=6)
        four = road.answer(tokenizer, PROMPTS[0], compose=COMPOSE, max_new_tokens=6)
        return one, four, road.describe(tokenizer, PROMPTS[0])

    check_same(answer)


def test_likelihoods_of_tokens() -> None:
    def nll(device: torch.device) -> Any:
        road = road_on(device, edit(position="first"))
        where = torch.tensor([[0, 1, 3, 3], [4, 4, 1, 2]], device=device)
        labels = torch.tensor([5, 6, 7, 8], device=device)
        lengths = torch.tensor([3, 4, 2, 1], device=device)
        scored = road.token_nll(
            where, labels, input_ids=IDS.to(device), compose=COMPOSE, prompt_length=lengths
        )
        scored.sum().backward()
        return scored.detach(), [each.grad for each in road.interventions.parameters()]

    check_same(nll)


def test_what_is_learned_and_what_only_acts() -> None:
    def gradients(device: torch.device) -> Any:
        road = road_on(device, edit(basis="random"))
        learning = ["a", "b", None, "all"]
        road(IDS.to(device), compose=COMPOSE, learning=learning).logits.square().mean().backward()
        return [each.grad for each in road.interventions.parameters()]

    check_same(gradients)


def test_collects_states(tokenizer: PreTrainedTokenizerFast) -> None:
    def collect(device: torch.device) -> Any:
        road = road_on(device, edit(position="last(2)"), edit(layer=2, position="all"))
        return road.collect(tokenizer, PROMPTS), road.collect(None, {"input_ids": IDS.to(device)})

    check_same(collect)


def test_saves_and_loads(tmp_path: Path) -> None:
    def through_a_folder(device: torch.device) -> Any:
        folder = tmp_path / device.type
        road = road_on(device, edit(basis="random"), edit(layer=2))
        road.save_pretrained(folder)
        again = RoadModel.from_pretrained(build().to(device), folder)
        again.add_checkpoint(folder, "other")
        compose = ["a", "0.5*a@other", None, "b + a@other"]
        assert {each.device for each in again.interventions.parameters()} == {device}
        return again(IDS.to(device), compose=compose).logits

    check_same(through_a_folder)


def test_a_road_that_moves() -> None:
    def moved(device: torch.device) -> Any:
        road = RoadModel(build(), [edit(basis="random"), edit(layer=2, basis="hadamard")])
        turned(road.interventions)
        road(IDS, compose=COMPOSE)  # fills the table with what lies on the CPU
        return road.to(device)(IDS.to(device), compose=COMPOSE).logits

    check_same(moved)


def test_an_edit_by_itself() -> None:
    def edited(device: torch.device) -> Any:
        alone = roadint.RoadIntervention(embed_dim=8, subspaces=HALVES).to(device)
        turned(alone)
        hidden = torch.arange(24.0).view(3, 8).to(device)
        return alone(hidden, subspaces=["a", None, "a + b"]), alone.rotation(0.5).dense()

    check_same(edited)
