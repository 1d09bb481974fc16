"""Training on another device than the CPU: the same numbers, with and without prefix reuse, killed and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import roadint
from roadint import LoreftIntervention, RoadIntervention, RoadModel
from roadint.data.collate import tokenize
from roadint.recipes.recipe import Recipe
from roadint.tasks.run import finetune
from roadint.training.base_trainer import training_arguments
from roadint.training.trainer import RoadTrainer
from tests.device.helpers import check_same
from tests.helpers import HALVES, SHORT, build, rows

DATA = {"a": rows("abab"), "b": rows("xyz")}


def model_on(device: torch.device) -> PreTrainedModel:
    """With the attention that rounds alike on both, since Adam makes much of small differences."""
    model = build()
    model.set_attn_implementation("eager")
    return model.to(device)


def values(road: RoadModel, summary: dict[str, Any]) -> Any:
    assert {each.device.type for each in road.trained_parameters()} == {road.device.type}
    trained = [each.detach() for each in road.trained_parameters()]
    return trained, summary["loss"], summary["steps"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prefix_reuse": False},
        {"prefix_memory": 1e-6},
        {"micro_batch": 2},
        {"companions": {"a": "b"}, "companion_rate": 0.5},
        {"max_log_scale": 0.02, "lrs": {"a": 1e-2}},
    ],
    ids=str,
)
def test_trains_to_the_same_numbers(settings: dict[str, Any], tokenizer: Any) -> None:
    def train(device: torch.device) -> Any:
        edits = [
            RoadIntervention(layer=layer, subspaces=HALVES, position="last(2)", basis="random")
            for layer in (0, 1)
        ]
        road = RoadModel(model_on(device), edits)
        return values(road, roadint.train(road, tokenizer, DATA, **{**SHORT, **settings}))

    check_same(train, on_gpu=1e-2)


@pytest.mark.parametrize("edit", ["loreft", "pca", "road_4 everywhere"])
def test_trains_other_edits(edit: str, tokenizer: Any) -> None:
    made = {
        "loreft": lambda: LoreftIntervention(
            layer=1, rank=4, subspaces={"a": "[0, 2)", "b": "[2, 4)"}
        ),
        "pca": lambda: RoadIntervention(layer=1, subspaces=HALVES, basis="pca"),
        "road_4 everywhere": lambda: RoadIntervention(
            layer=1, subspaces=HALVES, position="all", phase="both", variant="road_4"
        ),
    }

    def train(device: torch.device) -> Any:
        torch.manual_seed(0)
        road = RoadModel(model_on(device), made[edit]())
        return values(road, roadint.train(road, tokenizer, DATA, **{**SHORT, "epochs": 1}))

    check_same(train, on_gpu=1e-2)


def test_trains_adapters(tokenizer: Any) -> None:
    def train(device: torch.device) -> Any:
        road = RoadModel(model_on(device))
        torch.manual_seed(0)
        for name in "ab":
            road.add_adapter(name, lora_rank=2)
        return values(road, roadint.train(road, tokenizer, DATA, **{**SHORT, "epochs": 1}))

    check_same(train, on_gpu=1e-2)


def test_resumes(tokenizer: Any, tmp_path: Path) -> None:
    def train(device: torch.device) -> Any:
        road = RoadModel(model_on(device), RoadIntervention(layer=1, subspaces=HALVES))
        folder = tmp_path / device.type
        settings = {**SHORT, "save_steps": 4}
        with pytest.MonkeyPatch.context() as patch:
            save = RoadTrainer._save_checkpoint

            def stop(trainer: Any, *args: Any, **arguments: Any) -> None:
                save(trainer, *args, **arguments)
                raise KeyboardInterrupt

            patch.setattr(RoadTrainer, "_save_checkpoint", stop)
            with pytest.raises(KeyboardInterrupt):
                roadint.train(road, tokenizer, DATA, out=folder, **settings)
        road = RoadModel(model_on(device), RoadIntervention(layer=1, subspaces=HALVES))
        summary = roadint.train(road, tokenizer, DATA, out=folder, resume=True, **settings)
        return values(road, summary)

    check_same(train, on_gpu=1e-2)


@pytest.mark.parametrize("reuse", [True, False])
def test_evaluates_while_it_trains(reuse: bool, tokenizer: Any, tmp_path: Path) -> None:
    def evaluate(device: torch.device) -> Any:
        road = RoadModel(model_on(device), RoadIntervention(layer=1, subspaces=HALVES))
        examples = [
            example
            for name, each in DATA.items()
            for example in tokenize(each, tokenizer, name, template="plain", max_length=64)
        ]
        arguments = training_arguments(
            Recipe.load("composition", SHORT_SETTINGS), tmp_path / device.type, save_strategy="no"
        )
        trainer = RoadTrainer(
            road,
            arguments,
            train_dataset=examples,
            eval_dataset=examples[::5],
            data_collator=roadint.data.collate.Collator(tokenizer),
            prefix_reuse=reuse,
            quiet=True,
        )
        trainer.train()
        return trainer.evaluate()["eval_loss"]

    check_same(evaluate, on_gpu=1e-2)


SHORT_SETTINGS = {
    name: value for name, value in SHORT.items() if name not in ("quiet", "rows", "eos", "template")
}


def test_a_task_with_its_metric(
    classifier: str, sentiment: dict[str, str], device: torch.device, tmp_path: Path
) -> None:
    """Loaded, trained and measured on the device, by what the device is known to be."""
    settings = {"task": "sst2", "model": classifier, "epochs": 2, "lr": 3e-2, "batch_size": 16}
    road, summary = finetune(Recipe.load("glue", settings), data=sentiment, quiet=True)
    assert road.device == device
    assert {each.device for each in road.trained_parameters()} == {device}
    assert summary["test"] >= 0.5
