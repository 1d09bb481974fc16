"""Interchange on another device than the CPU: in forward, generate and by itself; learned masks, boundaries and sources."""

from pathlib import Path
from typing import Any

import pytest
import torch

from roadint import RoadInterchange, RoadModel
from tests.device.helpers import check_same, road_on, turned
from tests.helpers import HALVES, WIDTH, build

BASE, SOURCE = ["hello you", "abc"], ["what is !", "zyx"]


@pytest.mark.parametrize("position", ["last(2)", "all", "at(1, -2)"])
@pytest.mark.parametrize("mode", ["parallel", "serial"])
def test_of_prompts(position: str, mode: Any, tokenizer: Any) -> None:
    def run(device: torch.device) -> Any:
        made = [
            RoadInterchange(
                layer=layer, subspaces=HALVES, position=position, basis="random", stages=3
            )
            for layer in (0, 1)
        ]
        road = road_on(device, *made)
        sources = [SOURCE, SOURCE[::-1]] if position == "last(2)" else SOURCE
        output = road.interchange(tokenizer, BASE, sources, compose=["a", "a + 0.5*b"], mode=mode)
        output.logits[:, -1].square().mean().backward()
        gradients = [each.grad for each in road.interventions.parameters()]
        return output.logits[:, -1].detach(), gradients

    check_same(run)


@pytest.mark.parametrize("learn", [None, "mask", "boundary"])
@pytest.mark.parametrize("training", [True, False])
def test_learned_gates(learn: Any, training: bool) -> None:
    def run(device: torch.device) -> Any:
        made = RoadInterchange(embed_dim=WIDTH, subspaces=HALVES, learn=learn, stages=2).to(device)
        turned(made)
        made.train(training)
        base, source = (torch.randn(2, 3, WIDTH).to(device) for _ in "ab")
        edited = made(base, source, subspaces=["a", "0.5*b"])
        term = made.sparsity() if learn else torch.zeros((), device=device)
        (edited.square().mean() + term).backward()
        gradients = [each.grad for each in made.parameters() if each.grad is not None]
        return edited.detach(), gradients, made.taken() if learn else {}

    def seeded(device: torch.device) -> Any:
        torch.manual_seed(0)
        return run(device)

    check_same(seeded)


def test_collected_sources_in_every_call(tokenizer: Any, tmp_path: Path) -> None:
    def run(device: torch.device) -> Any:
        constant = torch.linspace(-1, 1, WIDTH)
        edits = [
            RoadInterchange(layer=1, subspaces=HALVES, position="last"),
            RoadInterchange(layer=2, subspace="[0, d/2)", source_representation=constant),
        ]
        road = road_on(device, *edits)
        sources = road.collect(tokenizer, SOURCE)
        asked = {"compose": ["a", "a + b"], "sources": sources, "max_new_tokens": 4}
        texts = road.answer(tokenizer, BASE, template="plain", **asked)
        road.save_pretrained(tmp_path / device.type)
        again = RoadModel.from_pretrained(build().to(device), tmp_path / device.type)
        return texts, again.answer(tokenizer, BASE, template="plain", **asked)

    check_same(run)


def test_sources_that_were_kept_elsewhere() -> None:
    """States that were saved, or moved to the CPU; in a list some here and some there."""
    ids = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])

    def run(device: torch.device) -> Any:
        edit = RoadInterchange(
            layer=1, subspaces=HALVES, basis="random", stages=2, position="last(2)"
        )
        road = road_on(device, edit)
        (of_edit,) = road.collect(None, {"input_ids": ids.flip(0).to(device)})
        away = [of_edit[0].cpu(), of_edit[1]]
        return [
            road(ids.to(device), compose="a", sources=[taken]).logits
            for taken in (of_edit, [each.cpu() for each in of_edit], away)
        ]

    check_same(run)
