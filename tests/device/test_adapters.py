"""Adapters on another device than the CPU: every variant, LoRA and heads, mixed, merged, in PEFT's form and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import roadint
from roadint import RoadIntervention, RoadLinear, RoadModel
from tests.device.helpers import check_same, same, turned
from tests.helpers import ARCHITECTURES, HALVES, IDS, VARIANTS, build, encoder
from tests.other_device import on_cpu

MIXED = ["x", "x + 0.5*y", None, "y"]


def adapted(device: torch.device, architecture: str = "llama", **arguments: Any) -> RoadModel:
    torch.manual_seed(0)
    road = RoadModel(build(architecture).to(device))
    for name in "xy":
        road.add_adapter(name, **arguments)
    turned(road.adapters)
    return road.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_batches(architecture: str) -> None:
    def run(device: torch.device) -> Any:
        road = adapted(device, architecture)
        ids = IDS.to(device)
        tokens = road.generate(ids, compose=MIXED, max_new_tokens=3, do_sample=False)
        logits = road(ids, compose=MIXED).logits
        logits.square().mean().backward()
        return tokens, logits.detach(), [each.grad for each in road.adapters.parameters()]

    check_same(run)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pairing", ["adjacent", "half", 8])
@pytest.mark.parametrize("grad", [True, False])
def test_every_variant(variant: Any, pairing: Any, grad: bool) -> None:
    def run(device: torch.device) -> Any:
        road = adapted(device, variant=variant, pairing=pairing, subspace="[0, d/2)")
        with torch.set_grad_enabled(grad):
            return road(IDS.to(device), compose=["x", None, "y", "0.5*y"]).logits

    check_same(run)


def test_lora_beside_and_beams() -> None:
    def run(device: torch.device) -> Any:
        road = adapted(device, lora_rank=2)
        ids = IDS.to(device)
        logits = road(ids, compose=MIXED, learning=["x", "y", None, "all"]).logits
        logits.square().mean().backward()
        beams = road.generate(ids, compose=MIXED, max_new_tokens=3, num_beams=2, do_sample=False)
        with torch.no_grad():
            alike = road(ids, compose="x").logits
        return logits.detach(), alike, beams, [each.grad for each in road.adapters.parameters()]

    check_same(run)


def test_heads() -> None:
    def run(device: torch.device) -> Any:
        road = RoadModel(encoder().to(device))
        for name in "xy":
            road.add_adapter(name, targets=["query", "word_embeddings"], heads="classifier")
        turned(road.adapters)
        return road(input_ids=IDS.to(device), compose=["x", None, "y", "x"]).logits

    check_same(run)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_and_back(architecture: str, variant: Any) -> None:
    def run(device: torch.device) -> Any:
        road = adapted(device, architecture, variant=variant, lora_rank=2)
        before = {name: value.clone() for name, value in road.model.state_dict().items()}
        with road.merged("x") as plain:
            logits = plain(input_ids=IDS.to(device)).logits
        after = road.model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        road.merge("x")
        road.unmerge()
        return logits, road.model.state_dict()

    check_same(run)


def test_beside_edits_of_hidden_states() -> None:
    def run(device: torch.device) -> Any:
        road = adapted(device)
        road = RoadModel(build().to(device), RoadIntervention(layer=1, subspaces=HALVES))
        turned(road.interventions)
        road.add_adapter("x", layers=[0, 2])
        turned(road.adapters)
        return road(IDS.to(device), compose=["a + x", "x", None, "b"]).logits

    check_same(run)


def test_saved_and_loaded(tmp_path: Path) -> None:
    def run(device: torch.device) -> Any:
        folder = tmp_path / device.type
        adapted(device, lora_rank=2).save_pretrained(folder / "both")
        road = RoadModel.from_pretrained(build().to(device), folder / "both")
        road.save_pretrained(folder / "x", adapters=["x"])
        road.load_adapter(folder / "x", "z")
        assert {each.device for each in road.adapters.parameters()} == {device}
        return road(IDS.to(device), compose=["x", "z", "y - z", None]).logits

    check_same(run)
    one, other = (
        json.loads((tmp_path / name / "both" / "road.json").read_text()) for name in ("cpu", "cuda")
    )
    assert one == other


def test_in_pefts_form(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from roadint.interop.peft import export, load

    def run(device: torch.device) -> Any:
        road = adapted(device, targets=["q_proj", "down_proj"])
        export(road, tmp_path / device.type, "x")
        again = RoadModel(build().to(device))
        load(again, tmp_path / device.type, "back")
        return again(IDS.to(device), compose=["back", None, "0.5*back", "back"]).logits

    check_same(run)
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path / "cuda").eval()
    road = RoadModel(build())
    load(road, tmp_path / "cuda", "back")
    same(theirs(input_ids=IDS).logits, road(input_ids=IDS, compose="back").logits)


def test_a_layer_by_itself() -> None:
    def run(device: torch.device) -> Any:
        torch.manual_seed(0)
        layer = RoadLinear(nn.Linear(6, 8).to(device), variant="road_2")
        turned(layer.road)
        x = torch.arange(12.0).view(2, 6).to(device).requires_grad_()
        layer(x).square().sum().backward()
        return layer(x), x.grad, layer.road.theta.grad

    check_same(run)


def test_moved_after_it_was_made() -> None:
    def run(device: torch.device) -> Any:
        road = adapted(torch.device("cpu"), lora_rank=2)
        road(IDS, compose=MIXED)
        with torch.no_grad():
            return road.to(device)(IDS.to(device), compose=MIXED).logits

    check_same(run)


def test_made_in_one_line(device: torch.device) -> None:
    road = roadint.add_linear_road(build().to(device), name="math")
    assert {each.device for each in road.trained_parameters()} == {device}
    same(on_cpu(road(IDS.to(device), compose="math").logits), on_cpu(road.model(IDS.to(device))[0]))
