"""Layers that are compiled for a training give what the model's own give, from few graphs."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from roadint import Recipe, RoadIntervention, RoadTrainer
from roadint.data.collate import Collator, Example, tokenize
from roadint.model.road_model import RoadModel
from roadint.training.base_trainer import training_arguments
from tests.helpers import HALVES, build, trained

BACKEND = "aot_eager"  # traces forward and backward, and runs them without a compiler


@pytest.fixture(autouse=True)
def _new_graphs() -> None:
    torch._dynamo.reset()
    counters.clear()


def examples(tokenizer: Any) -> list[Example]:
    """Rows of many lengths, in batches of which the last of an epoch is smaller."""
    return [
        example
        for name, output in (("a", "abcab"), ("b", "xyz"))
        for example in tokenize(
            [{"instruction": "say" + "q" * (i % 9), "output": output * (1 + i % 3)} for i in range(11)],
            tokenizer, name, template="plain", max_length=64,
        )
    ]  # fmt: skip


def train(
    road: RoadModel, tokenizer: Any, folder: Path, **settings: Any
) -> tuple[Tensor, list[float]]:
    """What is learned, and the losses of the steps."""
    recipe = Recipe(batch_size=8, micro_batch=4, epochs=2, lr=1e-2)
    trainer = RoadTrainer(
        road,
        training_arguments(recipe, folder, save_strategy="no"),
        train_dataset=examples(tokenizer),
        data_collator=Collator(tokenizer),
        companions={"a": "b"} if len(road.interventions) else None,
        **settings,
    )
    trainer.args.logging_steps = 1
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return torch.cat([value.detach().flatten() for value in road.trained_parameters()]), losses


@pytest.mark.parametrize(("architecture", "reuse"), [("gemma3", True), ("gpt2", False)])
def test_a_training_is_the_same(
    architecture: str, reuse: bool, tokenizer: Any, tmp_path: Path
) -> None:
    """Edits between compiled layers, rows in which a companion does not learn, batches of many shapes."""
    found = []
    for backend in (False, BACKEND):
        sites = RoadIntervention(layer=0, subspaces=HALVES, basis="random"), RoadIntervention(layer=1, position="last(3)", subspaces=HALVES)  # fmt: skip
        road = trained(build(architecture), *sites)
        found.append(train(road, tokenizer, tmp_path, compile=backend, prefix_reuse=reuse))
    (plain, losses), (compiled, other) = found
    assert other == pytest.approx(losses, abs=1e-5)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)
    # One graph for all layers and shapes; sliding windows, masks and single rows may have their own.
    assert 1 <= counters["stats"]["unique_graphs"] <= 4
    assert not counters["graph_break"]


def test_layers_with_an_edit_inside_run_uncompiled(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="roadint")
    sites = RoadIntervention(layer=0, subspaces=HALVES), RoadIntervention(layer=1, component="mlp_output", subspaces=HALVES)  # fmt: skip
    found = [
        train(trained(build(), *sites), tokenizer, tmp_path, compile=backend)[0]
        for backend in (False, BACKEND)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert "compiled: 1 of the 2 layers above the lowest edit" in caplog.text


def test_what_cannot_be_compiled_is_said_and_trains(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no compiler here")

    torch._dynamo.register_backend(broken, name="roadint_broken")  # type: ignore[no-untyped-call]

    def wrong(graph: Any, inputs: Any) -> Any:
        return lambda *args: [value.roll(1, -1) for value in graph(*args)]

    torch._dynamo.register_backend(wrong, name="roadint_wrong")  # type: ignore[no-untyped-call]
    plain = train(trained(build()), tokenizer, tmp_path)[0]
    for backend, said in (("roadint_broken", "no compiler here"), ("roadint_wrong", "other likelihoods")):  # fmt: skip
        caplog.clear()
        found = train(trained(build()), tokenizer, tmp_path, compile=backend)[0]
        assert torch.equal(found, plain)
        assert said in caplog.text
    caplog.clear()
    road = RoadModel(build())
    for name in "ab":
        road.add_adapter(name)
    train(road, tokenizer, tmp_path, compile=BACKEND)
    assert "in all 3 layers above the lowest edit something acts inside" in caplog.text
