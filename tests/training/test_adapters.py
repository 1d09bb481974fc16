"""Adapters through roadint's own training: recipes of kind "linear", resuming, rescaling, decay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import roadint
from roadint import Recipe, RoadError, RoadModel
from roadint.data.collate import Collator, completion_nll, tokenize
from roadint.training.constraints import Constraints
from tests.helpers import IDS, SHORT, build, randomised, rows


def test_each_data_set_trains_its_own_adapter(
    model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    """From a recipe, on every architecture; the base model stays; what is saved comes back bit for bit."""
    recipe = Recipe.load("composition", {"kind": "linear", "data": {"a": "x", "b": "y"}, "lora_rank": 2, "companions": {}, "lrs": {}, "strengths": {}, "layers": [0, 2]})  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    road = recipe.on(model)
    assert road.names == ["a", "b"]
    data = {"a": rows("aaaaaaaa"), "b": rows("bbbbbbbb")}
    summary = roadint.train(road, tokenizer, data, recipe, out=tmp_path, **SHORT)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        bool((adapter.theta != 0).any() and (adapter.lora_b != 0).any())
        for adapter in road.adapters.values()
    )
    assert summary["trainable"] == road.trainable_count
    likelier = {}
    for name in ("a", "b"):
        ids = tokenizer(["say 3"], return_tensors="pt")["input_ids"]
        token = tokenizer(name)["input_ids"][-1]
        likelier[name] = {each: float(road(input_ids=ids, compose=each).logits[0, -1].log_softmax(-1)[token].detach()) for each in (None, "a", "b")}  # fmt: skip
    assert likelier["a"]["a"] > max(likelier["a"][None], likelier["a"]["b"])
    assert likelier["b"]["b"] > max(likelier["b"][None], likelier["b"]["a"])
    again = RoadModel.from_pretrained(model, tmp_path)
    assert torch.equal(
        again(input_ids=IDS, compose="a").logits, road(input_ids=IDS, compose="a").logits
    )


def test_one_adapter_trains_and_the_others_stay(llama: PreTrainedModel, tokenizer: Any) -> None:
    road = RoadModel(llama)
    for seed, name in enumerate("ab"):
        randomised(road.add_adapter(name, variant="road_2"), seed)
    before = {name: value.clone() for name, value in road.adapters["b"].state_dict().items()}
    roadint.train(road, tokenizer, {"a": rows("aaaaaaaa")}, **SHORT)
    assert all(
        torch.equal(value, before[name]) for name, value in road.adapters["b"].state_dict().items()
    )


def test_a_strength_becomes_the_new_one() -> None:
    for variant in ("road_1", "road_2", "road_4"):
        road = RoadModel(build("llama"))
        adapter = randomised(road.add_adapter("a", variant=variant, lora_rank=2))  # type: ignore[arg-type]
        with torch.no_grad():  # beyond half a circle, and scales below 0
            adapter.theta[:2] += 4
            adapter.alpha[1:4] *= -1
        expected = road(input_ids=IDS, compose="0.4*a").logits
        adapter.rescale(0.4)
        torch.testing.assert_close(
            road(input_ids=IDS, compose="a").logits, expected, rtol=0, atol=2e-5
        )


def test_decay_and_bounds_act_on_adapters_too(llama: PreTrainedModel) -> None:
    road = RoadModel(llama)
    adapter = randomised(road.add_adapter("a"))
    theta = adapter.theta.detach().clone()
    optimizer = torch.optim.SGD(road.trained_parameters(), lr=0.1)
    Constraints({}, decay=0.5, max_log_scale=0.1).install(
        optimizer, road.interventions, list(road.adapters.values())
    )
    optimizer.step()  # without gradients: the decay alone
    torch.testing.assert_close(
        adapter.theta.detach().abs(), 0.95 * theta.abs(), rtol=1e-5, atol=1e-6
    )
    assert float(adapter.alpha.detach().log().abs().max()) <= 0.1 + 1e-6


def test_rates_are_for_subspaces_of_interventions(llama: PreTrainedModel, tokenizer: Any) -> None:
    road = RoadModel(llama)
    road.add_adapter("a")
    with pytest.raises(RoadError, match="no subspace 'a' to give a rate"):
        roadint.train(road, tokenizer, {"a": rows("aaaa")}, lrs={"a": 1e-2}, **SHORT)


def test_completions_alone_are_scored_with_adapters(llama: PreTrainedModel, tokenizer: Any) -> None:
    """`completion_nll` gives what the logits give."""
    road = RoadModel(llama)
    randomised(road.add_adapter("a"))
    batch = Collator(tokenizer)(
        tokenize(rows("abcdef", 3), tokenizer, "a", template="plain", max_length=64)
    )
    nll, row = completion_nll(road, batch)
    logits = road(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], compose="a"
    ).logits
    at = batch["places"]
    expected = torch.nn.functional.cross_entropy(
        logits[at[0], at[1]], batch["labels"], reduction="none"
    )
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(row, at[0])
