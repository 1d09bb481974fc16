"""What runs at every step lets the host run ahead: no more waits for the device than the bare model has."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import roadint
from roadint import LoreftIntervention, RoadInterchange, RoadIntervention, RoadModel
from roadint.data.collate import Collator, completion_nll, moved, tokenize
from roadint.evaluation.likelihood import reference_nll
from roadint.grammar.composition import Composition
from tests.device.helpers import road_on, turned
from tests.helpers import HALVES, IDS, SHORT, WIDTH, build, rows
from tests.other_device import waits

COMPOSE = ["a", "a + 0.5*b", None, "b"]


def by_step(work: Callable[[int], Any], few: int, many: int) -> Counter[str]:
    """The waits that more steps have, by where."""
    found = []
    for steps in (few, many):
        with waits() as counted:
            work(steps)
        found.append(Counter(counted))
    return found[1] - found[0]


def roadints(found: Counter[str]) -> dict[str, int]:
    """Those of roadint's own code."""
    home = str(Path(roadint.__file__).parent)
    return {where: count for where, count in found.items() if home in where}


def decode(road: RoadModel, compose: Any, **settings: Any) -> Callable[[int], Any]:
    ids = IDS.to(road.device)
    settings = {"do_sample": False, "eos_token_id": None, **settings}
    return lambda tokens: road.generate(ids, compose=compose, max_new_tokens=tokens, **settings)


@pytest.mark.parametrize(
    ("position", "phase"),
    [("last(2)", "prompt"), ("all", "generated"), ("all", "both"), ("at(1)", "generated")],
)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_step_of_generate(
    position: str, phase: str, settings: dict[str, Any], device: torch.device
) -> None:
    road = road_on(
        device, RoadIntervention(layer=1, subspaces=HALVES, position=position, phase=phase)
    )
    decode(road, COMPOSE, **settings)(2)  # fills the table of rotations
    bare = by_step(decode(road, None, **settings), 3, 7)
    assert by_step(decode(road, COMPOSE, **settings), 3, 7) == bare


@pytest.mark.parametrize("compose", ["a", ["a", "0.5*b", None, "b"]], ids=["one", "mixed"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"variant": "road_4", "pairing": "half"},
        {"lora_rank": 2},
    ],
    ids=["road_1", "road_4", "LoRA"],
)
def test_a_step_of_generate_with_adapters(
    compose: Any, arguments: dict[str, Any], device: torch.device
) -> None:
    road = RoadModel(build().to(device))
    for name in "ab":
        road.add_adapter(name, **arguments)
    turned(road.adapters)
    road.eval()
    decode(road, compose)(2)
    assert by_step(decode(road, compose), 3, 7) == by_step(decode(road, None), 3, 7)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("edit", ["road", "loreft", "adapters"])
def test_a_step_of_training(edit: str, reuse: bool, device: torch.device, tokenizer: Any) -> None:
    """What transformers and accelerate wait for is theirs; roadint adds nothing to it."""
    subspaces = {"a": "[0, 2)", "b": "[2, 4)"}

    def train(epochs: int) -> None:
        model = build().to(device)
        if edit == "adapters":
            road = RoadModel(model)
            for name in "ab":
                road.add_adapter(name)
        elif edit == "road":
            road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES))
        else:
            road = RoadModel(model, LoreftIntervention(layer=1, rank=4, subspaces=subspaces))
        settings = {**SHORT, "epochs": epochs, "prefix_reuse": reuse}
        data = {"a": rows("abab"), "b": rows("xyz")}
        roadint.train(road, tokenizer, data, **settings)

    train(1)  # what happens once a process
    found = roadints(by_step(train, 1, 3))
    logged = {where: count for where, count in found.items() if "composition_losses" in where}
    assert found == logged
    assert sum(logged.values()) <= 2  # 12 steps, a line of the log every ten


@pytest.mark.parametrize(
    "arguments",
    [
        {"variant": "road_1"},
        {"variant": "road_4", "basis": "random"},
        {"variant": "road_2", "basis": "hadamard", "position": "last(3)"},
    ],
    ids=str,
)
def test_the_edit_of_a_training_step(
    arguments: dict[str, Any], device: torch.device, tokenizer: Any
) -> None:
    """The loss and its gradient of a batch that is on the device already."""
    road = road_on(device, RoadIntervention(layer=1, subspaces=HALVES, **arguments)).train()
    examples = [
        example
        for name in "ab"
        for example in tokenize(rows("abab", 2), tokenizer, name, template="plain", max_length=64)
    ]
    batch = moved(Collator(tokenizer)(examples), device)

    def step(count: int) -> None:
        for _ in range(count):
            completion_nll(road, batch)[0].sum().backward()

    step(1)
    assert roadints(by_step(step, 1, 3)) == {}


@pytest.mark.parametrize("learn", [None, "mask", "boundary"])
def test_a_step_of_an_interchange(learn: Any, device: torch.device) -> None:
    made = RoadInterchange(embed_dim=WIDTH, subspaces=HALVES, learn=learn, stages=4).to(device)
    base, source = torch.ones(4, WIDTH, device=device), torch.zeros(4, WIDTH, device=device)

    def step(count: int) -> None:
        for _ in range(count):
            edited: Tensor = made(base, source, subspaces=[["a"]] * 4)
            (edited.square().mean() + made.sparsity()).backward()

    step(1)
    assert by_step(step, 1, 3) == {}


def test_a_batch_of_a_measurement(device: torch.device, tokenizer: Any) -> None:
    """The values of all batches are fetched at the end; what a call checks is counted a call."""
    road = road_on(device, RoadIntervention(layer=1, subspaces=HALVES))
    compositions = [Composition.parse(text, road.names) for text in (None, "a")]

    def measure(batches: int) -> None:
        texts = [{"instruction": "say", "output": "ab"}] * (2 * batches)
        reference_nll(road, tokenizer, texts, compositions, batch_size=2)

    measure(1)
    assert not any("/evaluation/" in where for where in by_step(measure, 1, 3))
