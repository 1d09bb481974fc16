"""Training: each example through its own subspace, the base model untouched, killed and resumed to the same result."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    TrainingArguments,
)
from transformers import logging as transformers_logging

import roadint
from roadint import RoadError, RoadIntervention, RoadModel, RoadTrainer
from roadint.checkpoint.reading import read
from roadint.data.collate import Collator, tokenize
from roadint.data.sources import load_rows
from roadint.training.isolation import frozen
from tests.helpers import HALVES, SHORT, WIDTH, build, rows, trained


def test_each_example_trains_its_own_subspace_and_nothing_else(
    model: PreTrainedModel, tokenizer: Any
) -> None:
    model.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES))
    verbosity = transformers_logging.get_verbosity()
    summary = roadint.train(road, tokenizer, {"a": rows("aaaaaaaa")}, **SHORT)
    assert transformers_logging.get_verbosity() == verbosity
    theta = road.interventions[0].theta
    half = WIDTH // 4
    assert bool((theta[:half] != 0).all())
    assert torch.equal(theta[half:], torch.zeros(half))
    assert torch.equal(road.interventions[0].alpha[half:], torch.ones(half))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )
    assert not model.training
    assert summary["steps"] == 6
    assert summary["rows"] == {"a": 12}
    assert summary["trainable"] == WIDTH


def test_training_both_equals_training_each_alone(llama: PreTrainedModel, tokenizer: Any) -> None:
    """Disjoint blocks at one site: a subspace's gradient does not know of the other's examples (full batches, SGD)."""
    data = {"a": rows("abab", 4), "b": rows("xyz", 4)}
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    examples = {
        name: tokenize(each, tokenizer, name, template="plain", max_length=64)
        for name, each in data.items()
    }
    gradients = {}
    for names in (["a"], ["b"], ["a", "b"]):
        road.zero_grad()
        batch = Collator(tokenizer)([example for name in names for example in examples[name]])
        roadint.data.collate.completion_nll(road, batch)[0].sum().backward()
        gradients["".join(names)] = road.interventions[0].theta.grad.clone()
    torch.testing.assert_close(
        gradients["ab"], gradients["a"] + gradients["b"], rtol=1e-4, atol=1e-5
    )
    assert torch.equal(gradients["a"][WIDTH // 4 :], torch.zeros(WIDTH // 4))


def test_learns_two_things_in_two_subspaces(
    llama: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    road = RoadModel(
        llama,
        RoadIntervention(layer=1, position="all", phase="both", variant="road_4", subspaces=HALVES),
    )
    data = {
        "a": rows("aaaaaaaa"),
        "b": [*rows("zzzzzzzz", 11), {"instruction": "say 11", "output": "zz"}],
    }
    settings = {**SHORT, "epochs": 30, "lr": 0.1}
    summary = roadint.train(road, tokenizer, data, out=tmp_path / "out", **settings)
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    for name in ("a", "b"):
        assert log[-1][f"loss/{name}"] < log[0][f"loss/{name}"] - 0.5
        assert summary["loss"][f"loss/{name}"] == log[-1][f"loss/{name}"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "log.jsonl",
        "road.json",
        "road.safetensors",
    ]
    again = RoadModel.from_pretrained(build("llama"), tmp_path / "out")
    assert torch.equal(again.interventions[0].theta, road.interventions[0].theta)
    assert again.template == "plain"
    assert again.training_summary == json.loads(json.dumps(summary))
    report = roadint.evaluate(road, tokenizer, data, ["say 3"], max_new_tokens=4)
    assert report.nll["a"]["a"] < report.nll["none"]["a"]
    assert report.nll["b"]["b"] < report.nll["none"]["b"]
    assert report.nll["none"]["a"] == pytest.approx(
        plain_nll(llama, tokenizer, data["a"]), rel=1e-4
    )
    assert report.nll["none"]["b"] == pytest.approx(
        plain_nll(llama, tokenizer, data["b"]), rel=1e-4
    )
    assert set(report.language) == {"none", "a", "b", "a + b"}
    assert [answer.composition for answer in report.answers] == ["none", "a", "b", "a + b"]


def plain_nll(model: PreTrainedModel, tokenizer: Any, references: list[dict[str, str]]) -> float:
    """Row by row, without padding, through the model's own loss."""
    losses = []
    for row in references:
        prompt = tokenizer(row["instruction"])["input_ids"]
        completion = [
            *tokenizer(row["output"], add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        labels = torch.tensor([[-100] * len(prompt) + completion])
        with torch.no_grad():
            losses.append(
                model(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.item()
            )
    return sum(losses) / len(losses)


def test_accumulation_equals_one_large_batch(llama: PreTrainedModel, tokenizer: Any) -> None:
    results = []
    for micro_batch in (8, 2):
        road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
        settings = {**SHORT, "batch_size": 8, "micro_batch": micro_batch}
        roadint.train(
            road,
            tokenizer,
            {"a": load_rows("bundled:german", 8), "b": load_rows("bundled:english", 8)},
            **settings,
        )
        results.append(road.interventions[0].theta.detach().clone())
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-3)


def test_evaluates_while_training(llama: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    examples = tokenize(rows("aaa"), tokenizer, "a", template="plain", max_length=32)
    arguments = TrainingArguments(
        str(tmp_path), eval_strategy="epoch", num_train_epochs=1, report_to="none", remove_unused_columns=False, dataloader_pin_memory=False,
        label_names=["labels"], prediction_loss_only=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = RoadTrainer(
        road,
        arguments,
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=Collator(tokenizer),
    )
    trainer.train()
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    with pytest.raises(RoadError, match=r"weight_decay=0.1 pulls α toward 0"):
        RoadTrainer(road, TrainingArguments(str(tmp_path), weight_decay=0.1, report_to="none"))


def test_frozen_restores_also_after_an_exception(llama: PreTrainedModel) -> None:
    llama.lm_head.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in llama.parameters()]
    with pytest.raises(RuntimeError), frozen(llama):
        assert not any(parameter.requires_grad for parameter in llama.parameters())
        raise RuntimeError
    assert [parameter.requires_grad for parameter in llama.parameters()] == before


def test_bad_data_is_named_before_anything_is_written(
    llama: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    with pytest.raises(RoadError, match="unknown subspace 'c'"):
        roadint.train(road, tokenizer, {"c": rows("x")}, out=tmp_path / "out", **SHORT)
    with pytest.raises(RoadError, match="data set 'none' trains nothing"):
        roadint.train(road, tokenizer, {"none": rows("x")}, out=tmp_path / "out", **SHORT)
    with pytest.raises(RoadError, match="unknown subspace 'german'"):
        roadint.train(road, tokenizer, out=tmp_path / "out", **SHORT)  # the recipe's own data sets
    assert not (tmp_path / "out").exists()


RUN = """
import sys, time, torch
from pathlib import Path
import roadint
from roadint.data.sources import load_rows
from tests.helpers import build
from transformers import AutoTokenizer, TrainerCallback

out, resume, slow = Path(sys.argv[1]), sys.argv[2] == "resume", sys.argv[3] == "slow"
if slow:  # leave time for the kill
    from roadint.training.trainer import RoadTrainer
    step = RoadTrainer.training_step
    RoadTrainer.training_step = lambda self, *a, **k: (time.sleep(0.15), step(self, *a, **k))[1]
tokenizer = AutoTokenizer.from_pretrained(sys.argv[4])
road = roadint.RoadModel(build("gemma3"), roadint.RoadIntervention(layer=1, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}))
data = {"a": "bundled:german", "b": "bundled:english"}
roadint.train(road, tokenizer, data, out=out, resume=resume, quiet=True, rows=40, max_completion=8, epochs=2,
              batch_size=4, micro_batch=2, lr=5e-2, save_steps=4, companions={"a": "b"}, max_length=256)
"""


def test_killed_in_mid_training_it_resumes_to_the_same_result(
    tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def start(out: str, how: str, pace: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(RUN),
            str(tmp_path / out),
            how,
            pace,
            str(tmp_path / "tokenizer"),
        ]
        return subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )

    def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
        _, errors = process.communicate(timeout=300)
        return process.returncode, errors

    whole = start("whole", "fresh", "fast")
    killed = start("killed", "fresh", "slow")
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 200
    while not (checkpoints / "checkpoint-24" / "trainer_state.json").exists():
        assert killed.poll() is None, killed.stderr.read() if killed.stderr else ""
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "road.json").exists()
    (checkpoints / "checkpoint-99").mkdir()  # as if it had died while writing
    (checkpoints / "checkpoint-99" / "road.json").write_text('{"form')
    assert finish(whole) == (0, "")
    code, errors = finish(start("killed", "fresh", "fast"))
    assert code == 1
    assert "holds an unfinished run: add --resume" in errors
    assert finish(start("killed", "resume", "fast")) == (0, "")
    one, other = (read(tmp_path / name).interventions()[0] for name in ("whole", "killed"))
    assert torch.equal(one.theta, other.theta)
    assert torch.equal(one.alpha, other.alpha)
    assert not checkpoints.exists()


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_a_companion_acts_and_does_not_learn(
    llama: PreTrainedModel, tokenizer: Any, variant: Any
) -> None:
    road = trained(llama, RoadIntervention(layer=1, variant=variant, subspaces=HALVES))
    batch = Collator(tokenizer)(
        tokenize(rows("abc", 2), tokenizer, "a", template="plain", max_length=32)
    )
    nll_of = roadint.data.collate.completion_nll
    together, _ = nll_of(road, {**batch, "compose": ["a + b", "a"], "learning": ["a", "a"]})
    expected, _ = nll_of(road, {**batch, "compose": ["a + b", "a"]})
    assert torch.equal(together, expected)
    together.sum().backward()
    half = WIDTH // 4
    for parameter in road.interventions[0].parameters():
        assert bool((parameter.grad[:half] != 0).any())
        assert torch.equal(parameter.grad[half:], torch.zeros_like(parameter.grad[half:]))


def test_training_with_companions_leaves_them_as_they_are(
    llama: PreTrainedModel, tokenizer: Any
) -> None:
    results = []
    for companions in ({}, {"a": "b"}):
        road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
        with torch.no_grad():
            road.interventions[0].theta[WIDTH // 4 :] = 1.0
        roadint.train(
            road,
            tokenizer,
            {"a": rows("aaaaaaaa")},
            **{**SHORT, "companions": companions, "companion_rate": 1.0},
        )
        results.append(road.interventions[0].theta.detach().clone())
    assert torch.equal(results[0][WIDTH // 4 :], results[1][WIDTH // 4 :])
    assert not torch.equal(results[0][: WIDTH // 4], results[1][: WIDTH // 4])
    with pytest.raises(RoadError, match="unknown subspace 'c'"):
        roadint.train(road, tokenizer, {"a": rows("a")}, **{**SHORT, "companions": {"a": "c"}})


@pytest.mark.parametrize("companion", ["-b", "-0.5*b", "none", "b - a + 0.5*a", "all"])
def test_companions_of_every_form_act_as_sums(
    llama: PreTrainedModel, tokenizer: Any, companion: str, monkeypatch: Any
) -> None:
    seen: list[Any] = []
    forward = RoadModel.forward
    monkeypatch.setattr(
        RoadModel,
        "forward",
        lambda self, **inputs: (seen.extend(inputs["compose"]), forward(self, **inputs))[1],
    )
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    changes = {
        "companions": {"a": [companion]},
        "companion_rate": 1.0,
        "epochs": 1,
        "prefix_reuse": False,
    }
    roadint.train(road, tokenizer, {"a": rows("abc", 4)}, **{**SHORT, **changes})
    wanted = {
        "-b": "a - b",
        "-0.5*b": "a - 0.5*b",
        "none": "a",
        "b - a + 0.5*a": "0.5*a + b",
        "all": "2*a + b",
    }
    assert {str(each) for each in seen} == {wanted[companion]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"companions": {"a": "c"}}, "unknown subspace 'c'"),
        ({"companions": {"a": "b +"}}, "is not understood"),
        ({"companions": {"a": "-a"}}, "companion '-a' takes 'a' out of 'a'"),
        (
            {"companions": {"b": "a"}},
            "setting companions names 'b', which is no data set here: expected one of 'a'",
        ),
        ({"companion_rate": 1.5}, "companion_rate=1.5 must be at least 0 and at most 1"),
        ({"lrs": {"all": 1.0}}, "recipe setting lrs names 'all'"),
        ({"strengths": {"all": 2.0}}, "recipe setting strengths names 'all'"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    llama: PreTrainedModel, tokenizer: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    with pytest.raises(RoadError, match=message):
        roadint.train(
            road, tokenizer, {"a": rows("abc", 4)}, out=tmp_path / "out", **{**SHORT, **changes}
        )
    assert not (tmp_path / "out").exists()


def test_models_with_few_positions_or_tokens_say_so(tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    few = GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=12)
    ).eval()
    tiny = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    rotary = build("llama")
    rotary.config.max_position_embeddings = 12  # no table: it goes on
    for model, message in (
        (few, "a row has 35 tokens, the model 12 positions: expected max_length=12 or less"),
        (tiny, "outside the model's 60 embeddings"),
    ):
        road = RoadModel(model, RoadIntervention(layer=0, subspaces=HALVES))
        with pytest.raises(RoadError, match=message):
            roadint.train(
                road,
                tokenizer,
                {"a": rows("abc" * 10, 4)},
                out=tmp_path / "out",
                **{**SHORT, "max_completion": 30},
            )
        assert not (tmp_path / "out").exists()
    for model, completion in ((few, 5), (rotary, 30)):
        road = RoadModel(model, RoadIntervention(layer=0, subspaces=HALVES))
        settings = {**SHORT, "max_completion": completion}
        summary = roadint.train(road, tokenizer, {"a": rows("abc" * 10, 4)}, **settings)
        assert summary["prefix_reuse"] is not None
