"""RoadIntervention in pyreft's model and trainer: RoadModel's numbers; pyreft's LoReFT against roadint's."""

import copy
from pathlib import Path

import pyreft
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.interop.pyreft import (
    ReftTrainer,
    load,
    load_intervention,
    loreft_from,
    make_data_module,
)
from roadint.interop.pyvene import pyvene_config, register_model
from tests.helpers import WIDTH, trained

QUESTIONS, ANSWERS = ["hello", "what is it", "abc", "zz top"], ["one", "two twos", "three", "4"]


def arguments(folder: Path, **settings: object) -> TrainingArguments:
    settings = {
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-2,
        "report_to": "none",
        **settings,
    }
    return TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **settings)  # type: ignore[arg-type]


def test_trains_saves_loads_and_generates_with_roadmodels_numbers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    intervention = RoadIntervention(
        layer=1, position="last(2)", subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}
    )
    reft = pyreft.get_reft_model(model, pyvene_config(model, intervention))
    data = make_data_module(
        tokenizer,
        model,
        QUESTIONS,
        ANSWERS,
        [[0], [1], [0], [1]],
        position="last(2)",
        template="plain",
    )
    trainer = ReftTrainer(
        model=reft, processing_class=tokenizer, args=arguments(tmp_path / "run"), **data
    )
    before = trainer.train().training_loss
    assert trainer.train().training_loss < before
    assert intervention.theta.abs().max() > 0

    reft.save(str(tmp_path / "saved"))
    loaded = load(tmp_path / "saved", model)
    road = RoadModel(model, intervention).eval()
    ids = tokenizer(["hello you", "hello two"], return_tensors="pt")
    last = ids["input_ids"].shape[1] - 1
    where = {"sources->base": (None, [[[last - 1, last]] * 2])}
    expected = road(**ids, compose=["a", "a + b"]).logits
    for reft_model in (reft, loaded):
        _, output = reft_model(dict(ids), unit_locations=where, subspaces=[[[0], [0, 1]]])
        torch.testing.assert_close(output.logits, expected, atol=1e-6, rtol=1e-6)
    _, tokens = loaded.generate(
        dict(ids),
        unit_locations=where,
        subspaces=[[[0], [0, 1]]],
        intervene_on_prompt=True,
        max_new_tokens=5,
        do_sample=False,
    )
    expected = road.generate(**ids, compose=["a", "a + b"], max_new_tokens=5, do_sample=False)
    assert torch.equal(tokens, expected)


def test_the_best_checkpoint_comes_back_without_a_gpu(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    intervention = RoadIntervention(layer=1)
    reft = pyreft.get_reft_model(llama, pyvene_config(llama, intervention))
    data = make_data_module(tokenizer, llama, QUESTIONS, ANSWERS)
    ReftTrainer(
        model=reft, processing_class=tokenizer, args=arguments(tmp_path, save_steps=5), **data
    ).train()
    trained_theta = intervention.theta.detach().clone()
    with torch.no_grad():
        intervention.theta.zero_()
    load_intervention(reft, tmp_path / "checkpoint-10" / "intervenable_model")
    assert torch.equal(intervention.theta, trained_theta)
    with pytest.raises(RoadError, match=r"has no intkey_"):
        load_intervention(reft, tmp_path)


def test_training_and_inference_edit_the_same_token(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = make_data_module(
        tokenizer,
        llama,
        QUESTIONS,
        ANSWERS,
        position="last(2)",
        template="plain",
        stop=[True, False, False, True],
    )
    for question, row in zip(QUESTIONS, data["train_dataset"], strict=True):
        length = len(tokenizer(question)["input_ids"])
        assert row["intervention_locations"] == [[length - 2, length - 1]]
        assert row["labels"] == [-100] * length + row["input_ids"][length:]
    assert (
        data["train_dataset"][0]["input_ids"][-1]
        == tokenizer.eos_token_id
        != data["train_dataset"][1]["input_ids"][-1]
    )
    with pytest.raises(RoadError, match="1 subspaces for 4 instructions"):
        make_data_module(tokenizer, llama, QUESTIONS, ANSWERS, [[0]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_edited_tokens_are_the_prompts_whatever_the_padding(
    side: str, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Locations are counted from a row's first token, which is also where a tokenizer pads the other side."""
    padding = copy.deepcopy(tokenizer)
    padding.padding_side = side
    data = make_data_module(padding, llama, QUESTIONS, ANSWERS, position="last", template="plain")
    batch = data["data_collator"]([data["train_dataset"][row] for row in range(len(QUESTIONS))])
    assert bool((batch["attention_mask"] == 0).any())
    for row, question in enumerate(QUESTIONS):
        at = int(batch["intervention_locations"][row, 0, 0])
        assert batch["input_ids"][row, at] == tokenizer(question)["input_ids"][-1]
        assert batch["labels"][row, at] == -100 != batch["labels"][row, at + 1]
    assert padding.padding_side == side


def test_loreft_is_pyrefts_and_takes_its_values(llama: PreTrainedModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    register_model(llama)
    original = pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=4, dtype=torch.float32)
    sites = [
        {"layer": 1, "component": "block_output", "low_rank_dimension": 4, "intervention": original}
    ]
    reft = pyreft.get_reft_model(llama, pyreft.ReftConfig(representations=sites))
    road = RoadModel(llama, loreft_from(reft))
    ids = torch.randint(3, 99, (2, 7))
    _, output = reft({"input_ids": ids}, unit_locations={"sources->base": (None, [[[6], [6]]])})
    torch.testing.assert_close(road(input_ids=ids).logits, output.logits, atol=1e-6, rtol=1e-6)
    h = torch.randn(3, 2, WIDTH)
    torch.testing.assert_close(road.interventions[0](h), original(h), atol=1e-6, rtol=1e-6)
    with pytest.raises(RoadError, match="expected a LoreftIntervention"):
        loreft_from(
            pyreft.get_reft_model(llama, pyvene_config(llama, trained(llama).interventions))
        )


def test_one_that_is_not_bound_has_parameters_and_trains(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As pyreft's users write it: a dict a site, no width, the layer once."""
    intervention = RoadIntervention(layer=1, subspace="[0, d/2)")
    optimizer = torch.optim.AdamW(intervention.parameters(), lr=0.1)
    sites = [{"component": "block_output", "intervention": intervention}]
    reft = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=sites))
    assert reft.count_parameters() == WIDTH
    reft.print_trainable_parameters()
    assert f"trainable intervention params: {WIDTH}" in capsys.readouterr().out
    assert [id(each) for each in reft.get_trainable_parameters()] == [
        id(each) for each in optimizer.param_groups[0]["params"]
    ]
    data = make_data_module(tokenizer, model, QUESTIONS, ANSWERS)
    settings = arguments(tmp_path / "run", max_steps=2)
    ReftTrainer(model=reft, processing_class=tokenizer, args=settings, **data).train()
    half = WIDTH // 4
    assert bool((intervention.theta[:half] != 0).all())
    assert torch.equal(intervention.theta[half:], torch.zeros(half))
    model.eval()
    ids = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))
    _, output = reft({"input_ids": ids}, unit_locations={"sources->base": (None, [[[6], [6]]])})
    torch.testing.assert_close(
        output.logits, RoadModel(model, intervention)(input_ids=ids).logits, atol=1e-6, rtol=1e-6
    )


def test_values_that_do_not_fit_are_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    reft = pyreft.get_reft_model(
        llama, pyreft.ReftConfig(representations=[RoadIntervention(layer=1)])
    )
    reft.save_intervention(str(tmp_path / "saved"))
    others = pyreft.get_reft_model(
        llama, pyreft.ReftConfig(representations=[RoadIntervention(layer=1, variant="road_2")])
    )
    (key,) = others.interventions
    torch.save({"theta": torch.ones(3)}, tmp_path / "saved" / f"intkey_{key}.bin")
    with pytest.raises(RoadError, match="do not fit"):
        load_intervention(others, tmp_path / "saved")


def test_what_would_be_lost_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Another activation, and values of the model that were saved beside the interventions."""
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": 1,
                "component": "block_output",
                "low_rank_dimension": 2,
                "intervention": pyreft.LoreftIntervention(
                    embed_dim=WIDTH, low_rank_dimension=2, act_fn="relu"
                ),
            }
        ]
    )
    register_model(llama)
    reft = pyreft.get_reft_model(llama, config)
    with pytest.raises(RoadError, match="has the activation .*, and LoReFT here is linear"):
        loreft_from(reft)
    llama.requires_grad_(False)
    reft.save(str(tmp_path / "frozen"), include_model=True)  # a file without any values
    load(tmp_path / "frozen", llama)
    llama.lm_head.weight.requires_grad_()
    trained_head = llama.lm_head.weight.detach().clone()
    reft.save(str(tmp_path), include_model=True)
    with torch.no_grad():
        llama.lm_head.weight.zero_()
    with pytest.raises(RoadError, match="include_model=True to take them, or False"):
        load(tmp_path, llama)
    load(tmp_path, llama, include_model=False)
    assert not bool(llama.lm_head.weight.any())
    load(tmp_path, llama, include_model=True)
    assert torch.equal(llama.lm_head.weight, trained_head)
