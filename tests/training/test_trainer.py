"""RoadTrainer, and transformers' own trainers and pipelines around a RoadModel: everything acts, or is refused."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    pipeline,
)

import roadint
from roadint import RoadError, RoadIntervention, RoadModel, RoadTrainer
from roadint.data.collate import Collator, Example, completion_nll, tokenize
from roadint.training.base_trainer import _check_device
from roadint.training.composition_losses import CompositionLosses
from roadint.training.run_folder import checkpoints_in
from tests.helpers import WIDTH, build, trained

HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}
ROWS = [{"instruction": f"say {index}", "output": "abcabc"} for index in range(16)]


def arguments(
    folder: Path, kind: type[TrainingArguments] = TrainingArguments, **changes: Any
) -> Any:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "num_train_epochs": 3, "learning_rate": 1e-2, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "log_level": "error", "save_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip
    return kind(output_dir=str(folder), **{**settings, **changes})


@pytest.fixture
def examples(tokenizer: Any) -> list[Example]:
    return tokenize(ROWS, tokenizer, "a", template="plain", max_length=64)


def new_trainer(
    folder: Path,
    tokenizer: Any,
    examples: list[Example],
    road: RoadModel | None = None,
    **changes: Any,
) -> Any:
    road = road or RoadModel(
        build("llama").requires_grad_(False), RoadIntervention(layer=1, subspaces=HALVES)
    )
    of_trainer = {
        name: changes.pop(name) for name in ("callbacks", "compute_metrics") if name in changes
    }
    return RoadTrainer(
        road,
        arguments(folder, **changes),
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=Collator(tokenizer),
        **of_trainer,
    )


def test_the_best_epoch_is_left(tokenizer: Any, examples: list[Example], tmp_path: Path) -> None:
    trainer = new_trainer(
        tmp_path, tokenizer, examples, learning_rate=2.0, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True,  # the first epoch's
    )  # fmt: skip
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[0] == max(losses) > losses[-1] + 0.01
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], abs=1e-5)


def test_it_stops_early_and_measures(
    tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    def metrics(predicted: Any) -> dict[str, float]:
        assert predicted.predictions.shape == predicted.label_ids.shape == (15, 7)
        scored = predicted.label_ids != -100
        assert scored.sum(1).tolist() == [6] * 14 + [7]
        return {"mean": float(predicted.predictions[scored].mean())}

    *rest, last, _ = examples
    examples = [
        *rest,
        Example(last.prompt, [*last.completion, 9], "a"),
    ]  # neither as many rows nor tokens as others
    trainer = new_trainer(
        tmp_path, tokenizer, examples, num_train_epochs=9, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True, callbacks=[EarlyStoppingCallback(2)], compute_metrics=metrics,
    )  # fmt: skip
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(found) == 3
    for entry in found:
        assert entry["eval_mean"] == pytest.approx(
            entry["eval_loss"], rel=1e-2
        )  # Trainer's is a mean of batches


def test_the_loss_is_the_mean_over_the_tokens(
    tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    road = trained(build("llama").requires_grad_(False))
    with torch.no_grad():
        nll, _ = completion_nll(road, Collator(tokenizer)(examples))
    for changes in (
        {"per_device_train_batch_size": 16},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    ):
        trainer = new_trainer(
            tmp_path,
            tokenizer,
            examples,
            trained(build("llama")),
            max_steps=1,
            logging_steps=1,
            **changes,
        )
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(float(nll.mean()), rel=1e-5)


def test_resuming_takes_the_last_whole_checkpoint_or_is_refused(
    tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 5}
    whole = new_trainer(tmp_path, tokenizer, examples, **settings)
    whole.train()
    checkpoints = checkpoints_in(tmp_path)
    assert [path.name for path in checkpoints] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    (checkpoints[2] / "optimizer.pt").unlink()
    again = new_trainer(tmp_path, tokenizer, examples, **settings)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.model.interventions[0].theta, whole.model.interventions[0].theta)
    assert entry_of(again, "train_loss") == pytest.approx(mean_after_four(tokenizer, tmp_path))
    named = [
        {name: entry[name] for name in ("loss", "loss/a")}
        for entry in again.state.log_history
        if "loss" in entry
    ]
    assert named == [
        {name: entry[name] for name in ("loss", "loss/a")}
        for entry in whole.state.log_history
        if "loss" in entry
    ]
    for path in checkpoints_in(tmp_path):
        (path / "optimizer.pt").unlink()
    for wanted in (True, str(checkpoints[0]), str(tmp_path / "none")):
        with pytest.raises(RoadError, match="expected a checkpoint with all that a training needs"):
            new_trainer(tmp_path, tokenizer, examples, **settings).train(
                resume_from_checkpoint=wanted
            )


@pytest.mark.parametrize(
    "setting",
    [
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5.0},
        {"gradient_checkpointing": True},
        {"torch_compile": True},
        {"use_liger_kernel": True},
        {"auto_find_batch_size": True},
        {"push_to_hub": True},
        {"weight_decay": 0.1},
        {"train_sampling_strategy": "sequential"},
        {"bf16_full_eval": True},
        {"debug": "underflow_overflow"},
    ],
)
def test_what_would_not_act_is_refused(
    tokenizer: Any, examples: list[Example], tmp_path: Path, setting: dict[str, Any]
) -> None:
    with pytest.raises(RoadError, match=next(iter(setting))):
        new_trainer(tmp_path, tokenizer, examples, **setting)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RoadError])
@pytest.mark.parametrize("mode", [True, False])
def test_an_error_in_mid_training_leaves_the_model_as_it_was(
    tokenizer: Any, error: type[BaseException], mode: bool
) -> None:
    model = build("llama").train(mode)
    model.lm_head.weight.requires_grad_(False)
    road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES)).eval()
    road.template = "chat"
    count = [0]

    def state() -> Any:
        hooks = [
            len(each._forward_hooks) + len(each._forward_pre_hooks) + ("forward" in vars(each))
            for each in road.modules()
        ]
        modes = [each.training for each in road.modules()]
        return (
            hooks,
            modes,
            [each.requires_grad for each in model.parameters()],
            str(model.config),
            str(model.generation_config),
        )

    def fails(*_: Any) -> None:
        count[0] += 1
        if count[0] == 40:
            raise error("now")

    handle = model.model.layers[2].register_forward_pre_hook(fails)
    before, threads = state(), set(threading.enumerate())
    with pytest.raises(error):
        roadint.train(
            road,
            tokenizer,
            {"a": ROWS},
            template="plain",
            eos=[],
            companions={},
            epochs=30,
            max_length=64,
            quiet=False,
            batch_size=4,
        )
    assert state() == before
    assert road.template == "chat"
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)  # a progress bar's, which was told to end
    assert set(threading.enumerate()) <= threads
    handle.remove()
    roadint.train(
        road,
        tokenizer,
        {"a": ROWS},
        template="plain",
        eos=[],
        companions={},
        epochs=1,
        max_length=64,
        quiet=True,
    )


def test_half_precision_leaves_the_forward_as_it_was(
    tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    trainer = new_trainer(tmp_path, tokenizer, examples, bf16=True)
    before = trainer.model(input_ids=torch.tensor([[5, 6, 7]]), compose=None).logits
    trainer.train()
    assert torch.equal(
        trainer.model(input_ids=torch.tensor([[5, 6, 7]]), compose=None).logits, before
    )
    assert bool(trainer.model.interventions[0].theta.any())


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_measuring_without_training_leaves_the_forward_as_it_was(
    method: str, tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    trainer = new_trainer(tmp_path, tokenizer, examples, bf16=True)
    before = trainer.model(input_ids=torch.tensor([[5, 6, 7]]), compose=None).logits
    getattr(trainer, method)(examples)
    assert "forward" not in vars(trainer.model)
    after = trainer.model(input_ids=torch.tensor([[5, 6, 7]]), compose=None).logits
    assert torch.equal(after, before)


@pytest.mark.parametrize("first", ["train", "evaluate"])
def test_half_precision_acts_every_time(
    first: str, tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    """In every training and evaluation of a RoadModel, by this trainer or another one."""
    trainer = new_trainer(tmp_path, tokenizer, examples, bf16=True, num_train_epochs=1)
    dtypes: list[torch.dtype] = []
    layer = trainer.model.model.model.layers[-1].mlp.up_proj
    layer.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    other = new_trainer(tmp_path, tokenizer, examples, trainer.model, bf16=True, num_train_epochs=1)
    for act in (
        getattr(trainer, first),
        trainer.evaluate,
        trainer.train,
        trainer.evaluate,
        trainer.train,
        other.train,
        other.evaluate,
    ):
        dtypes.clear()
        act()
        assert set(dtypes[-2:]) == {torch.bfloat16}, act
    assert not hasattr(trainer.model, "_is_accelerate_prepared")


def test_a_seed_of_the_order_alone(tokenizer: Any, examples: list[Example], tmp_path: Path) -> None:
    orders = [
        list(new_trainer(tmp_path, tokenizer, examples, **seeds)._get_train_sampler())
        for seeds in (
            {"seed": 0},
            {"seed": 0, "data_seed": 1},
            {"seed": 1},
            {"seed": 3, "data_seed": 0},
        )
    ]
    assert orders[0] == orders[3]
    assert orders[1] == orders[2] != orders[0]


def test_one_of_several_gpus_takes_the_rows_that_were_asked_for(
    tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    """Without torchrun Trainer would give every GPU as many, of which one trains."""
    road = RoadModel(
        build("llama").requires_grad_(False), RoadIntervention(layer=1, subspaces=HALVES)
    )
    settings = arguments(tmp_path, per_device_train_batch_size=4, num_train_epochs=1)
    assert settings.n_gpu < 2
    settings._n_gpu = 2
    trainer = RoadTrainer(road, settings, train_dataset=examples, data_collator=Collator(tokenizer))
    assert [len(batch["input_ids"]) for batch in trainer.get_train_dataloader()] == [4] * 4
    trainer.train()
    assert trainer.state.global_step == 4


def with_other_kernels(model: Any) -> Any:
    """As Liger and others do it: forwards of their own on single modules, and on the model, which then returns a loss alone where it gets labels."""

    def norm(self: Any, hidden: Tensor) -> Tensor:
        called.append("norm")
        scale = (hidden * hidden).mean(-1, keepdim=True).add(self.variance_epsilon).rsqrt()
        return self.weight * (hidden * scale)

    def whole(self: Any, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        called.append("model")
        assert labels is None
        return type(self).forward(self, *args, **kwargs)

    called: list[str] = []
    model.called = called
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            vars(module)["forward"] = norm.__get__(module, type(module))
    vars(model)["forward"] = whole.__get__(model, type(model))
    return model


@pytest.mark.parametrize("reuse", [True, False])
def test_a_model_that_already_has_other_kernels_trains_with_them(
    reuse: bool, tokenizer: Any
) -> None:
    found = []
    for make in (build, lambda: with_other_kernels(build())):
        road = trained(make().requires_grad_(False))
        roadint.train(
            road, tokenizer, {"a": ROWS}, template="plain", eos=[], companions={}, epochs=1, max_length=64,
            batch_size=4, prefix_reuse=reuse, quiet=True,
        )  # fmt: skip
        found.append(road.interventions[0].theta.detach())
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
    assert {"norm", "model"} == set(road.model.called)


def test_trainings_of_several_threads_are_those_of_one(tokenizer: Any) -> None:
    models = [
        build("llama") for _ in range(6)
    ]  # their values are drawn from the process's random numbers

    def train(seed: int) -> Tensor:
        road = RoadModel(models.pop(), RoadIntervention(layer=1, subspaces=HALVES))
        settings: dict[str, Any] = {
            "template": "plain",
            "eos": [],
            "epochs": 2,
            "max_length": 64,
            "batch_size": 4,
            "micro_batch": 2,
        }
        roadint.train(
            road,
            tokenizer,
            {"a": ROWS},
            seed=seed,
            companions={"a": ["b", "-b"]},
            quiet=True,
            **settings,
        )
        return road.interventions[0].theta.detach().clone()

    alone = [train(seed) for seed in range(3)]
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: train(seed)}))
        for seed in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(alone):
        assert torch.equal(found[seed], expected)


# transformers' own trainers and pipelines


TOKENS = [
    {
        "input_ids": [1, 5 + i, 6, 7 + i, 9],
        "attention_mask": [1] * 5,
        "labels": [-100, 5 + i, 6, 7 + i, 9],
    }
    for i in range(8)
]


class Recording(Trainer):
    """Keeps the loss and the gradients of each step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, *args, **kwargs)
        head = getattr(model, "model", model) if isinstance(model, RoadModel) else model
        self.seen.append((loss.clone(), head.lm_head.weight.grad.clone()))
        return loss


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"label_smoothing_factor": 0.1},
        {
            "label_smoothing_factor": 0.1,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 2,
        },
        {"average_tokens_across_devices": False},
    ],
)
@pytest.mark.parametrize("as_data_set", [False, True])
def test_losses_and_gradients_are_the_base_models(
    changes: dict[str, Any], as_data_set: bool, tmp_path: Path
) -> None:
    """With remove_unused_columns, as is Trainer's default."""
    results = []
    for wrapped in (False, True):
        model: Any = build("llama").requires_grad_(False)
        model.lm_head.weight.requires_grad_(True)
        data: Any = [{**row, "other": 3} for row in TOKENS]
        if as_data_set:
            import datasets

            data = datasets.Dataset.from_list(data)
        system = (
            RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES))
            if wrapped
            else model.eval()
        )
        settings = arguments(tmp_path, eval_strategy="epoch", **{"num_train_epochs": 1, **changes})
        trainer = Recording(system, settings, train_dataset=data, eval_dataset=data)
        trainer.train()
        results.append(
            (
                trainer.seen,
                [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
            )
        )
    (plain, plain_eval), (ours, our_eval) = results
    assert len(plain) == len(ours) > 0
    for (loss, gradient), (other_loss, other_gradient) in zip(plain, ours, strict=True):
        torch.testing.assert_close(other_loss, loss)
        torch.testing.assert_close(other_gradient, gradient)
    assert our_eval == pytest.approx(plain_eval)


def test_a_classifiers_columns_and_losses_are_kept(classifier: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    data = [
        {"input_ids": [5 + i, 6, 7], "token_type_ids": [0, 1, 1], "labels": i % 2, "other": 1}
        for i in range(8)
    ]
    losses = []
    for wrapped in (False, True):
        model: Any = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
        system = roadint.add_linear_road(model, name="a") if wrapped else model
        losses.append(
            Trainer(system, arguments(tmp_path), eval_dataset=data).evaluate()["eval_loss"]
        )
    assert losses[1] == pytest.approx(losses[0])


def of_checkpointing(folder: Path, tokenizer: Any) -> None:
    Trainer(
        trained(build("llama")),
        arguments(folder, gradient_checkpointing=True),
        train_dataset=TOKENS,
    ).train()


def of_noise(folder: Path, tokenizer: Any) -> None:
    Trainer(
        trained(build("llama")), arguments(folder, neftune_noise_alpha=5.0), train_dataset=TOKENS
    ).train()


@pytest.mark.parametrize("call", [of_checkpointing, of_noise])
def test_what_cannot_act_through_transformers_trainer_is_refused(
    call: Callable[[Path, Any], None], tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(RoadError):
        call(tmp_path, tokenizer)


def test_predictions_and_pipelines_generate_with_the_edit(
    tokenizer: Any, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.CRITICAL)
    road = trained(build("llama"))
    rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in TOKENS]
    ids = torch.tensor([row["input_ids"] for row in rows])
    greedy: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = road.generate(input_ids=ids, **greedy)
    assert not torch.equal(expected, road.model.generate(input_ids=ids, **greedy))
    for given in ({"input_ids": ids}, {"inputs": ids}):
        assert torch.equal(road.generate(**given, **greedy), expected)
    assert torch.equal(road.generate(ids, **greedy), expected)
    settings = arguments(
        tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True, num_train_epochs=1
    )
    predicted = Seq2SeqTrainer(road, settings, processing_class=tokenizer).predict(rows, **greedy)
    assert torch.equal(
        torch.tensor(predicted.predictions)[:, :9], expected
    )  # padded to a length of 20
    said = pipeline("text-generation", model=road, tokenizer=tokenizer)(
        "say it", **greedy, return_full_text=False
    )
    inputs = tokenizer("say it", return_tensors="pt")
    tokens = road.generate(**inputs, **greedy)[0, inputs["input_ids"].shape[1] :]
    assert said[0]["generated_text"] == tokenizer.decode(tokens, skip_special_tokens=True)
    with pytest.raises(RoadError, match="generate"):
        road.generate()
    with pytest.raises(RoadError, match="generate"):
        road.generate(tokenizer)


def test_a_road_model_names_itself_and_answers_for_its_model(llama: PreTrainedModel) -> None:
    road = trained(llama)
    assert repr(road).startswith("RoadModel(")
    assert road.config is llama.config
    assert road.dtype == torch.float32
    assert not hasattr(road, "hf_device_map")
    assert road.can_generate()
    assert road.accepts_loss_kwargs
    assert road.config.hidden_size == WIDTH


def entry_of(trainer: Any, name: str) -> Any:
    (value,) = (entry[name] for entry in trainer.state.log_history if name in entry)
    return value


def mean_after_four(tokenizer: Any, tmp_path: Path) -> float:
    """The mean loss of the steps after the fourth, of a run that tells every step's."""
    examples = tokenize(ROWS, tokenizer, "a", template="plain", max_length=64)
    told = new_trainer(tmp_path / "told", tokenizer, examples, logging_steps=1)
    told.train()
    losses = [entry["loss"] for entry in told.state.log_history if "loss" in entry]
    return sum(losses[4:]) / len(losses[4:])


def test_what_prefix_reuse_stored_goes_with_the_training(
    tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    trainer = new_trainer(
        tmp_path, tokenizer, examples, dataloader_num_workers=1, dataloader_persistent_workers=True,
        eval_strategy="epoch", num_train_epochs=1,
    )  # fmt: skip
    stored: list[Any] = []
    trainer.add_callback(Noting(lambda: stored.append(weakref.ref(trainer._prefix_cache))))
    trainer.train()
    gc.collect()
    assert stored[0]() is None
    during = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(during[-1], rel=1e-4)


class Noting(TrainerCallback):
    def __init__(self, note: Any) -> None:
        self.note = note

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.note()


def test_the_sampler_learns_the_epoch_whatever_is_around_it(
    tokenizer: Any, examples: list[Example], tmp_path: Path
) -> None:
    """Below a resumed run's skipped batches and accelerate's shards, set_epoch of loaders does not reach it."""
    trainer = new_trainer(tmp_path, tokenizer, examples)
    sampler = trainer._get_train_sampler()
    state = TrainerState(epoch=2.5)
    trainer.callback_handler.on_epoch_begin(trainer.args, state, trainer.control)
    assert sampler.epoch == 2


def test_one_process_writes(
    tokenizer: Any, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(tmp_path, tokenizer, examples)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingArguments, "should_save", False)
        trainer.save_model(str(tmp_path / "other"))
    assert not list(tmp_path.glob("other/*.safetensors"))
    trainer.save_model(str(tmp_path / "one"))
    assert list(tmp_path.glob("one/*.safetensors"))


def test_losses_of_all_processes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = CompositionLosses()
    losses.add(["a", "b"], torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1]))
    elsewhere = {"a": [5.0, 1.0], "c": [4.0, 2.0]}
    monkeypatch.setattr(
        "roadint.training.composition_losses.gather_object", lambda listed: [*listed, elsewhere]
    )
    assert losses.take_means(2) == {"a": 3.0, "b": 2.5, "c": 2.0}
    assert losses.take_means() == {}


def test_a_model_on_another_gpu_stays_there() -> None:
    def on(model: str, trainer: str, world_size: int = 1) -> None:
        value = SimpleNamespace(device=torch.device(model))
        fake: Any = SimpleNamespace(parameters=lambda: iter([value]), modules=lambda: [])
        args: Any = SimpleNamespace(device=torch.device(trainer), world_size=world_size)
        _check_device(fake, args)

    on("cuda:0", "cuda:0")
    on("cpu", "cuda:0")
    on("cuda:0", "cuda:1", world_size=2)
    with pytest.raises(RoadError, match="on cuda:1, .*expected .*CUDA_VISIBLE_DEVICES=1"):
        on("cuda:1", "cuda:0")
