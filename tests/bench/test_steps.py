"""Steps at a length of the cache: every run begins with the same cache, whatever ran before."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from roadint.adapters.targets import find_targets
from roadint.bench.compiled import generation_steps, generations
from roadint.bench.linear_systems import (
    LinearSystem,
    base_system,
    bmm_lora_system,
    merged_system,
    peft_lora_system,
    road_system,
)
from roadint.bench.shapes import random_ids, random_model
from roadint.bench.steps import EagerSteps, GraphSteps, modes_on

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return random_model("tiny", torch.float32, CPU)


class Watched(torch.nn.Module):
    """Notes how many tokens the cache holds before every step."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.lengths = model, []

    def forward(self, **inputs: Any) -> Any:
        cache = inputs.get("cache", inputs.get("past_key_values"))
        self.lengths.append(int(cache.get_seq_length()))
        return self.model(**inputs)


@torch.no_grad()
def test_eager_steps_begin_where_they_should(base: PreTrainedModel) -> None:
    watched = Watched(base)
    system = LinearSystem("base", watched, lambda rows: nullcontext(watched))
    steps = EagerSteps(base, rows=2, length=7, count=3)
    assert steps(system) > 0
    steps(system)
    assert watched.lengths == [7, 8, 9] * 2


@torch.no_grad()
def test_what_a_graph_captures_runs_again_and_again(base: PreTrainedModel) -> None:
    """The step itself, which a GPU would replay: more often than the cache has room, with different adapters a row."""
    paths = find_targets(base).paths
    systems = [
        make(base, paths, 3).assigned([0, 1, 2])
        for make in (base_system, road_system, bmm_lora_system)
    ]
    steps = GraphSteps(base, rows=3, length=4, count=9)
    logits = {}
    for system in systems:
        step = steps.step(system)
        for _ in range(3):
            steps.rewind()
            for _ in range(4):
                output = step().logits
        steps.rewind()
        logits[system.name] = step().logits
        assert output.shape[:2] == (3, 1)
    plain = logits.pop("base")
    assert all(not torch.allclose(plain, other, atol=1e-3) for other in logits.values())
    steps.close()


def test_graphs_are_left_out_without_a_gpu() -> None:
    assert modes_on(CPU, ("eager", "graph", "generate")) == ["eager", "generate"]
    assert modes_on(torch.device("cuda"), ("eager", "graph")) == ["eager", "graph"]


def test_steps_of_generate_are_those_of_the_rows_adapters(base: PreTrainedModel) -> None:
    systems = generations(base, 2)
    assert [system.name for system in systems] == ["base", "roadint, 2 adapters"]
    once = generation_steps(base, 2, length=5, count=3)
    assert all(once(system) > 0 for system in systems)
    ids = random_ids(base, 2, 5)
    arguments: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "pad_token_id": 0,
    }
    plain, ours = (system.generate(input_ids=ids, **arguments).logits[0] for system in systems)
    paths = find_targets(base).paths
    with torch.no_grad(), road_system(base, paths, 2).context([0, 1]) as edited:
        expected = edited(input_ids=ids).logits[:, -1]
    torch.testing.assert_close(ours, expected)
    assert not torch.allclose(plain, ours, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_a_merged_system_is_the_unmerged_one(base: PreTrainedModel, variant: Any) -> None:
    paths, ids = find_targets(base).paths, random_ids(base, 2, 6)
    before = base(input_ids=ids).logits
    with road_system(base, paths, 1, variant=variant).context([0, 0]) as edited:
        unmerged = edited(input_ids=ids).logits
    assert not torch.allclose(unmerged, before, atol=1e-3)
    if variant == "road_1":
        merged = merged_system(base, paths, 1).module(input_ids=ids).logits
        torch.testing.assert_close(merged, unmerged, rtol=1e-3, atol=1e-5)
    assert torch.equal(base(input_ids=ids).logits, before)


@torch.no_grad()
def test_systems_share_the_weights_and_leave_the_base_alone(base: PreTrainedModel) -> None:
    paths, ids = find_targets(base).paths, random_ids(base, 2, 6)
    before = base(input_ids=ids).logits
    for make in (bmm_lora_system, peft_lora_system):
        module = make(base, paths, 2).module
        pointers = {value.data_ptr() for value in module.parameters()}
        assert {value.data_ptr() for value in base.parameters()} <= pointers
    assert torch.equal(base(input_ids=ids).logits, before)
    whole = merged_system(base, paths, 1, lora_rank=4).module
    assert not torch.allclose(whole(input_ids=ids).logits, before, atol=1e-4)
    assert torch.equal(base(input_ids=ids).logits, before)
