"""Training on rows with images: the trainer, the recipes, the command line, what is told."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, TrainingArguments

import roadint
from roadint import Recipe, RoadError, RoadIntervention, RoadModel, RoadTrainer
from roadint.adapters.targets import find_targets
from roadint.data.collate import Collator, completion_nll, tokenize
from roadint.data.image_text.collate import ImageTextCollator, tokenize_conversations
from roadint.data.image_text.conversations import load_conversations
from roadint.model.pretrained import load_processor
from roadint.training.axes import fit_axes
from roadint.training.run_folder import identity_of
from roadint.training.states import edited_states
from tests.helpers import HALVES, build, call, rows, with_adapters
from tests.vision import gemma3, image, llava, processor, rows_with_images, save_llava


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model, "model", and of its rows."""
    made = tmp_path_factory.mktemp("vision")
    save_llava(made / "model")
    (made / "rows.json").write_text(json.dumps(rows_with_images(made)))
    return made


def examples_of(folder: Path, compositions: str = "x") -> list[Any]:
    found = load_conversations(folder / "rows.json")
    return [
        example
        for name in compositions
        for example in tokenize_conversations(
            found, processor(), name, template="chat", max_length=99
        )
    ]


def mean_nll(road: RoadModel, examples: list[Any]) -> float:
    with torch.no_grad():
        return float(completion_nll(road, ImageTextCollator(processor())(examples))[0].mean())


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    every: dict[str, Any] = {"per_device_train_batch_size": 4, "num_train_epochs": 4}
    every |= {"learning_rate": 0.03, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    every |= {"remove_unused_columns": False, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), **{**every, **settings})


def test_a_trainer_learns_and_says_why_no_prefix_is_reused(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, examples = llava(), examples_of(folder, "xy")
    road = with_adapters(model, "x", "y")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = mean_nll(road, examples)
    trainer = RoadTrainer(
        road,
        arguments(tmp_path),
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=ImageTextCollator(processor()),
    )
    with caplog.at_level(logging.WARNING, "roadint"):
        trainer.train()
    assert "no prefix reuse, training runs the plain way: a ImageTextCollator" in caplog.text
    assert mean_nll(road, examples) < start - 0.1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean_nll(road, examples), abs=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(bool((value != 0).any()) for value in road.trained_parameters())


def test_compiled_layers_train_an_edit_to_the_same_values(folder: Path, tmp_path: Path) -> None:
    values = []
    for compile in (False, "eager"):
        road = RoadModel(llava(), RoadIntervention(layer=1, subspaces=HALVES))
        RoadTrainer(
            road,
            arguments(tmp_path, max_steps=3),
            train_dataset=examples_of(folder, "ab"),
            data_collator=ImageTextCollator(processor()),
            compile=compile,
        ).train()
        values.append(road.interventions[0].theta.detach())
    assert bool((values[0] != 0).all())
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)


def test_micro_batches_do_not_change_a_step(folder: Path, tmp_path: Path) -> None:
    values = []
    for rows_at_once in (8, 2):
        road = with_adapters(llava(), "x")
        settings = {
            "per_device_train_batch_size": rows_at_once,
            "gradient_accumulation_steps": 8 // rows_at_once,
            "max_steps": 2,
        }
        RoadTrainer(
            road,
            arguments(tmp_path, **settings),
            train_dataset=examples_of(folder),
            data_collator=ImageTextCollator(processor()),
        ).train()
        values.append(torch.cat([value.detach().flatten() for value in road.trained_parameters()]))
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [llava, gemma3])
def test_rows_of_text_reuse_a_prefix_on_a_model_that_sees(
    make: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """The same values as the plain way."""
    found = []
    for reuse in (True, False):
        road = RoadModel(make(), RoadIntervention(layer=1, subspaces=HALVES))
        examples = tokenize(rows("abab", 8), tokenizer, "a", template="plain", max_length=64)
        trainer = RoadTrainer(
            road,
            arguments(tmp_path, max_steps=3),
            train_dataset=examples,
            data_collator=Collator(tokenizer),
            prefix_reuse=reuse,
        )
        trainer.train()
        assert (trainer.prefix_report is not None) == reuse
        found.append(road.interventions[0].theta.detach().clone())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_axes_are_those_of_states_that_saw_the_images(folder: Path) -> None:
    model, examples, collate = llava(), examples_of(folder), ImageTextCollator(processor())
    edit = RoadIntervention(layer=1, basis="pca", subspaces=HALVES)
    road = RoadModel(model, edit)
    states = []
    for example in examples:  # by hand, a row at a time
        batch = collate([example])
        names = ("input_ids", "attention_mask", "pixel_values")
        seen = {name: batch[name] for name in names if name in batch}
        hidden = model(**seen, output_hidden_states=True).hidden_states[2]
        states.append(hidden[0, len(example.prompt) - 1])
    measured = torch.cat([*edited_states(road, edit, examples, collate, task="states")])
    torch.testing.assert_close(measured, torch.stack(states), rtol=1e-4, atol=1e-4)
    fit_axes(road, examples, collate)
    assert edit.unmeasured_axes() is None


TRAIN = ["train", "llava", "--set", "batch_size=4", "--set", "epochs=3", "--set", "lr=0.03"]


@pytest.fixture
def trained(folder: Path, capsys: Any, monkeypatch: Any, tmp_path: Path) -> Any:
    def train(*more: str, name: str = "out") -> tuple[int, str, str]:
        data = ["--data", f"train={folder / 'rows.json'}", "--model", str(folder / "model")]
        return call(capsys, monkeypatch, *TRAIN, *data, "--out", str(tmp_path / name), *more)

    return train


def test_from_the_command_line(
    trained: Any, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, errors = trained("--json")
    assert code == 0, errors
    assert "no prefix reuse" in caplog.text
    summary = json.loads(out)
    assert summary["rows"] == {"train": 8}
    model, tokenizer = roadint.load(folder / "model")
    assert isinstance(model, LlavaForConditionalGeneration)
    road = RoadModel.from_pretrained(model, tmp_path / "out")
    assert road.names == ["train"]
    examples = examples_of(folder)
    reader = load_processor(folder / "model")
    batch = ImageTextCollator(reader)(examples)
    with torch.no_grad():
        start, end = (
            float(completion_nll(road, {**batch, "compose": compose})[0].mean())
            for compose in (None, "train")
        )
    assert end < start
    asked = reader(text="USER: <image>\nwhat?", images=image(1), return_tensors="pt")
    said = road.generate(
        **asked.to(road.device), compose="train", max_new_tokens=3, do_sample=False
    )
    assert said.shape[1] > asked["input_ids"].shape[1]
    assert trained("--resume")[0] == 0
    code, _, errors = trained("--resume", "--set", "template=plain")
    assert code == 2
    assert "other settings (template)" in errors
    assert tokenizer.get_vocab()["<image>"] == 120


def test_a_lora_beside_road_1(folder: Path, trained: Any, tmp_path: Path) -> None:
    code, out, errors = trained("--json", "--set", "variant=road_1", "--set", "lora_rank=4")
    assert code == 0, errors
    model = roadint.load(folder / "model")[0]
    adapter = RoadModel.from_pretrained(model, tmp_path / "out").adapters["train"]
    assert (adapter.variant, adapter.lora_rank) == ("road_1", 4)
    assert bool((adapter.lora_b != 0).any())
    assert json.loads(out)["trainable"] == adapter.trainable_count


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "images=false"], "row 0 of .* has no field 'instruction'"),
        (["--set", "max_length=10"], "expected fewer than max_length=10"),
        (["--set", "template=plain"], "template 'plain' is of one question"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_written(
    more: list[str], message: str, trained: Any, tmp_path: Path
) -> None:
    code, _, errors = trained(*more)
    assert code == 2
    with pytest.raises(RoadError, match=message):
        raise RoadError(errors)
    assert not (tmp_path / "out").exists()


def test_a_model_of_text_alone_reads_no_images(base: str, folder: Path, tokenizer: Any) -> None:
    with pytest.raises(RoadError, match="has no processor of images: expected a vision-language"):
        load_processor(base)
    data, road = {"x": folder / "rows.json"}, with_adapters(build("llama"), "x")
    with pytest.raises(RoadError, match="rows with images need the model's processor"):
        roadint.train(road, tokenizer, data, "llava", quiet=True)
    with pytest.raises(RoadError, match="LlavaProcessor reads images, and the recipe's rows have"):
        roadint.train(road, processor(), data, "llava", images=False, quiet=True)


def test_another_image_makes_another_run(folder: Path, tmp_path: Path) -> None:
    recipe, road = Recipe.load("llava"), with_adapters(llava(), "x")
    found = []
    for seed in (0, 0, 1):
        row = {"image": image(seed), "instruction": "a", "output": "b"}
        rows = tokenize_conversations(
            load_conversations([row]), processor(), "x", template="chat", max_length=99
        )
        found.append(identity_of(road, recipe, rows))
    assert found[0] == found[1] != found[2]


def test_the_recipes_train_the_papers_shares() -> None:
    """Of LLaVA-1.5-7B, table 6: RoAd4 .08 %, RoAd1 with LoRA 1.19 %."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig())
    size = sum(value.numel() for value in model.model.language_model.parameters())
    size += model.lm_head.weight.numel()
    layout = find_targets(model)
    assert len(layout.paths) == 7 * 32
    outputs, both = sum(layout.widths), sum(layout.widths) + sum(layout.inputs)
    rank = Recipe.load("llava-road_1-lora").edit.lora_rank
    assert Recipe.load("llava").edit.variant == "road_4"
    assert round(100 * 4 * outputs / size, 2) == 0.08
    assert round(100 * (outputs + rank * both) / size, 1) == 1.2
