"""Models over two devices, or copied to one for a call, by accelerate: each edit lives where its layer lives, and the numbers are those of one device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel

import roadint
from roadint import RoadInterchange, RoadIntervention, RoadModel
from tests.device.helpers import CPU, check_same, turned
from tests.helpers import HALVES, IDS, SHORT, build, encoder, rows

PARTS = [
    *("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"),
    *(f"model.layers.{index}" for index in range(3)),
]
Place = Callable[[PreTrainedModel, torch.device], PreTrainedModel]


def placed(on_cpu: list[str], parts: list[str] = PARTS, main: str | None = None) -> Place:
    """Some parts on the CPU, the others on the device, which runs them all where it is the main one."""

    def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
        if device == CPU:
            return model
        places = {part: "cpu" if part in on_cpu else "cuda:0" for part in parts}
        return dispatch_model(model, places, main or "cuda:0", force_hooks=True)

    return place


@pytest.fixture(
    params=[
        placed(["model.embed_tokens", "model.rotary_emb", *PARTS[4:6]], main="cpu"),
        placed(["model.layers.1", "model.norm", "lm_head"], main="cpu"),
        placed(["model.layers.0", "model.layers.2", "lm_head"]),
    ],
    ids=["the CPU first", "the CPU last", "copied for a call"],
)
def place(request: Any) -> Place:
    return request.param


def edited(model: PreTrainedModel, **arguments: Any) -> RoadModel:
    torch.manual_seed(0)
    edits = [
        RoadIntervention(
            layer=layer,
            position="all",
            subspaces={f"{name}{layer}": half for name, half in HALVES.items()},
        )
        for layer in range(3)
    ]
    road = RoadModel(model, edits)
    for name in "xy":
        road.add_adapter(name, **arguments)
    turned(road.interventions)
    turned(road.adapters)
    return road.eval()


@pytest.mark.parametrize("arguments", [{}, {"lora_rank": 2}, {"variant": "road_2"}])
def test_calls(arguments: dict[str, Any], place: Place) -> None:
    """Forward, backward and generate, with other edits in each row."""

    def run(device: torch.device) -> Any:
        road = edited(place(build(), device), **arguments)
        logits = road(IDS, compose=["a0 + b1 + x", "a2 + 0.5*y", None, "b2 + y"]).logits
        logits.square().mean().backward()
        learned = [*road.interventions.parameters(), *road.adapters.parameters()]
        compositions = [None, "a0 + x", "b2", "x"]
        tokens = road.generate(IDS, compose=compositions, max_new_tokens=3, do_sample=False)
        return logits.detach(), [each.grad for each in learned], tokens

    check_same(run)


def test_merging(place: Place) -> None:
    def run(device: torch.device) -> Any:
        road = edited(place(build(), device), lora_rank=2)
        outputs = [road(IDS, compose=None).logits.detach()]
        report = road.merge("x - 0.5*y")
        outputs.append(road(IDS, compose="a1").logits.detach())
        road.unmerge()
        outputs.append(road(IDS, compose=None).logits.detach())
        with road.merged("y") as plain:
            outputs.append(plain(IDS).logits.detach())
        return outputs, report.rounding

    check_same(run)


def test_interchange(place: Place, tokenizer: Any) -> None:
    def run(device: torch.device) -> Any:
        torch.manual_seed(0)
        edits = [RoadInterchange(layer=layer, subspaces=HALVES) for layer in (0, 1, 2)]
        road = RoadModel(place(build(), device), edits)
        turned(road.interventions)
        output = road.interchange(
            tokenizer, ["hello you", "abc"], ["what is !", "zyx"], compose="a"
        )
        output.logits[:, -1].square().mean().backward()
        sources = road.collect(tokenizer, ["what is !"])
        text = road.answer(tokenizer, ["abc"], "a + b", sources=sources, max_new_tokens=4)
        return (
            output.logits[:, -1].detach(),
            [e.grad for e in road.interventions.parameters()],
            text,
        )

    check_same(run)


def test_heads() -> None:
    parts = ["bert.embeddings", "bert.encoder", "bert.pooler", "dropout", "classifier"]

    def run(device: torch.device) -> Any:
        road = RoadModel(placed(parts[:2], parts, "cpu")(encoder(), device))
        for name in "xy":
            road.add_adapter(name, targets=["query", "word_embeddings"], heads="classifier")
        turned(road.adapters)
        return road(input_ids=IDS, compose=["x", None, "y", "x"]).logits.detach()

    check_same(run)


@pytest.mark.parametrize("adapters", [False, True], ids=["hidden states", "adapters"])
def test_training(adapters: bool, place: Place, tokenizer: Any) -> None:
    """With prefix reuse, whose stored states go back to the devices of their layers."""

    def run(device: torch.device) -> Any:
        model = place(build(), device)
        edits = [] if adapters else [RoadIntervention(layer=1, subspaces=HALVES)]
        road, data = RoadModel(model, edits), {"a": rows("abab")}
        if adapters:
            road.add_adapter("a")
        summary = roadint.train(road, tokenizer, data, **SHORT)
        assert adapters == (summary["prefix_reuse"] is None)
        return [value.detach() for value in road.trained_parameters()]

    check_same(run)
