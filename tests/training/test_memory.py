"""How many rows run at once: what a row keeps for its gradient is counted, and the split of a step changes no gradient."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, default_data_collator

import roadint
from roadint import Recipe, RoadError, RoadIntervention, RoadModel
from roadint.data.collate import Collator, Example, completion_nll, tokenize
from roadint.training.base_trainer import BaseTrainer, training_arguments
from roadint.training.memory import free_memory, kept_bytes, rows_that_fit
from roadint.training.trainer import RoadTrainer
from tests.helpers import HALVES, LAYERS, SHORT, WIDTH, build, encoder, rows, trained


def examples(tokenizer: Any, count: int = 8) -> list[Example]:
    listed = [{"instruction": "a" * (3 + i), "output": "bc" * (1 + i)} for i in range(count)]
    return tokenize(listed, tokenizer, "a", template="plain", max_length=64)


def kept(road: RoadModel, collator: Collator, batch: list[Example]) -> int:
    return kept_bytes(road.model, lambda: completion_nll(road, collator(batch))[0].mean())


def test_what_linear_layers_keep_is_their_input() -> None:
    """Known by hand: the inputs of the two layers and the output of the tanh between them, which is one of these."""
    layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.ones(5, 8)
    assert kept_bytes(layers, lambda: layers(x).sum()) == 4 * (5 * 8 + 5 * 16)
    layers.requires_grad_(False)
    assert kept_bytes(layers, lambda: layers(x).sum()) == 0


def test_rows_keep_their_share_and_layers_below_the_edit_nothing(
    model: PreTrainedModel, tokenizer: Any
) -> None:
    collator, (row, *_) = Collator(tokenizer), reversed(examples(tokenizer))
    found = {}
    for layer in (0, LAYERS - 2):
        road = trained(model.requires_grad_(False), RoadIntervention(layer=layer, subspaces=HALVES))
        one, two, four = (kept(road, collator, [row] * count) for count in (1, 2, 4))
        assert four - two == pytest.approx(2 * (two - one), rel=0.05)
        found[layer] = two - one
    above = {layer: LAYERS - 1 - layer for layer in found}
    assert found[0] / found[LAYERS - 2] == pytest.approx(above[0] / above[LAYERS - 2], rel=0.25)
    least = len(row.inputs) * WIDTH * 4  # a token has at least the input of a norm
    assert found[LAYERS - 2] > least


def test_a_container_has_less_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ("memory.max", "memory.current", "memory.stat")]
    for file, text in zip(files, ("max", "0", "anon 1"), strict=True):
        file.write_text(text)
    monkeypatch.setattr("roadint.training.memory._cgroups", lambda: [tuple(files)])
    whole = free_memory(torch.device("cpu"))
    assert whole > 1 << 24
    for file, text in zip(
        files, ("9000000", "8000000", "anon 7\ninactive_file 500000"), strict=True
    ):
        file.write_text(text + "\n")
    assert free_memory(torch.device("cpu")) == 1_500_000
    files[2].unlink()
    assert free_memory(torch.device("cpu")) > 1 << 24


def test_the_most_rows_that_fit_divide_a_step() -> None:
    assert [rows_that_fit(3000, size, 12) for size in (1, 200, 499, 501, 2000, 1e9)] == [12, 6, 4, 3, 1, 1]  # fmt: skip


@pytest.mark.parametrize(("reuse", "takes_count"), [(True, True), (False, True), (False, False)])
def test_the_split_of_a_step_changes_no_gradient(
    reuse: bool, takes_count: bool, tokenizer: Any, tmp_path: Path
) -> None:
    """A step of plain gradient descent is the gradient; also where the base model's forward takes no count of tokens, as Gemma 3's with images."""
    found: dict[int, Tensor] = {}
    for count in (8, 4, 2, 1):
        road = trained(build("llama").requires_grad_(False))
        road.model.accepts_loss_kwargs = takes_count
        before = road.interventions[0].theta.detach().clone()
        recipe = Recipe(batch_size=8, schedule="constant", lr=1.0, max_grad_norm=0)
        arguments = training_arguments(recipe, tmp_path, max_steps=1, save_strategy="no", optim="sgd")  # fmt: skip
        trainer = RoadTrainer(
            road,
            arguments,
            train_dataset=examples(tokenizer),
            data_collator=Collator(tokenizer),
            prefix_reuse=reuse,
        )
        trainer.split_steps(count)
        assert arguments.gradient_accumulation_steps == 8 // count
        trainer.train()
        assert trainer.state.global_step == 1
        found[count] = road.interventions[0].theta.detach() - before
    for count in (4, 2, 1):
        torch.testing.assert_close(found[count], found[8], rtol=1e-4, atol=1e-6)
    assert float(found[8].norm()) > 1e-3


def test_a_trainer_takes_as_many_rows_as_fit(tokenizer: Any, tmp_path: Path) -> None:
    """The base model, which is not frozen yet, and torch's random numbers are left as they were."""
    road, listed = trained(build("llama")), examples(tokenizer)
    arguments = training_arguments(Recipe(batch_size=8), tmp_path, save_strategy="no")
    trainer = RoadTrainer(road, arguments, train_dataset=listed, data_collator=Collator(tokenizer))
    road.model.requires_grad_(False)
    one = kept(road, trainer.data_collator, [max(listed, key=len)])
    road.model.requires_grad_(True)
    state = torch.get_rng_state()
    for free, expected in ((None, 8), (100 * one, 8), (6.5 * one, 4), (1.6 * one, 1), (0, 1)):
        trainer.fit_rows(free)
        split = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        assert split == (expected, 8 // expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.requires_grad for value in road.model.parameters())


def test_weights_in_half_precision_are_no_rows_own(tokenizer: Any, tmp_path: Path) -> None:
    """Linear layers keep copies of their weights in automatic precision, as many whatever the rows."""
    road, listed = trained(build("llama").requires_grad_(False)), examples(tokenizer)
    longest = max(listed, key=len)
    found = {}
    for precision in (None, "bf16"):
        recipe = Recipe(batch_size=8, mixed_precision=precision)
        arguments = training_arguments(recipe, tmp_path, save_strategy="no")
        trainer = RoadTrainer(
            road, arguments, train_dataset=listed, data_collator=Collator(tokenizer)
        )
        one, two = (
            kept_bytes(road, partial(trainer._loss_of, [longest] * count)) for count in (1, 2)
        )
        shared = trainer._kept_whatever_the_rows(longest, one)
        assert shared == (2 * one - two if precision else 0)
        found[precision] = shared
        trainer.fit_rows(1.6 * (shared + 4 * (one - shared)))
        assert arguments.per_device_train_batch_size == 4
    assert found["bf16"] > 1000


def test_rows_of_a_classifier_are_counted_too(tmp_path: Path) -> None:
    """A task's examples are mappings, and its loss is the model's own."""
    road = roadint.add_linear_road(encoder(), name="a")
    listed = [{"input_ids": [5, 6, *[7] * i], "attention_mask": [1] * (2 + i), "labels": i % 2} for i in range(8)]  # fmt: skip
    arguments = training_arguments(Recipe(batch_size=8), tmp_path, save_strategy="no")
    trainer = BaseTrainer(
        road, arguments, train_dataset=listed, data_collator=default_data_collator
    )
    batch = default_data_collator([listed[-1]])
    one = kept_bytes(road, lambda: road.train()(**batch).loss)
    trainer.fit_rows(6.5 * one)
    assert arguments.per_device_train_batch_size == 4


def test_recipes_say_how_many_rows_run_at_once(tokenizer: Any, llama: PreTrainedModel) -> None:
    def at_once(on_gpu: bool = False, **settings: Any) -> int:
        return Recipe(**settings).optimisation.rows_at_once(on_gpu=on_gpu)

    assert at_once(batch_size=8) == at_once(batch_size=8, on_gpu=True) == 8
    assert at_once(batch_size=8, micro_batch="auto") == 4
    assert at_once(batch_size=6, micro_batch="auto") == 3
    assert at_once(batch_size=8, micro_batch="auto", on_gpu=True) == 8
    assert at_once(batch_size=8, micro_batch=2, on_gpu=True) == 2
    assert Recipe.load("composition", {"micro_batch": "2"}).optimisation.micro_batch == 2
    with pytest.raises(RoadError, match="micro_batch='most' does not fit"):
        Recipe(micro_batch="most")
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    data = {"a": rows("aaaaaaaa"), "b": rows("bbbbbbbb")}
    for micro_batch, expected in (("auto", 4), (None, 8), (2, 2)):
        settings = {**SHORT, "batch_size": 8, "epochs": 1, "micro_batch": micro_batch}
        assert roadint.train(road, tokenizer, data, **settings)["micro_batch"] == expected
