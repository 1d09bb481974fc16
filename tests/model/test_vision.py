"""Adapters and hidden-state edits on vision-language models: the language model's own layers, with and without images."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import roadint
from roadint import RoadIntervention, RoadModel
from tests.helpers import HALVES, randomised
from tests.vision import IMAGE, MODELS, alone, inputs_of

COUNTS = [1, 0, 2, 1]  # images of the rows
COMPOSE = ["a + x", None, "y", "b + 0.5*x"]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=MODELS)
def seeing(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


def edited(model: PreTrainedModel, position: str = "last", lora_rank: int = 2) -> RoadModel:
    """Halves a and b of layer 1, and adapters x and y, as if trained."""
    road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES, position=position))
    with torch.no_grad():
        road.interventions[0].theta.normal_(0, 1)
        road.interventions[0].alpha.uniform_(0.5, 1.5)
    randomised(road.add_adapter("x"), 1)
    randomised(road.add_adapter("y", variant="road_4", lora_rank=lora_rank), 2)
    return road.eval()


def kept(inputs: dict[str, Tensor], row: int) -> Tensor:
    return inputs["attention_mask"][row].bool()


def test_all_linear_is_the_language_model_alone(seeing: PreTrainedModel) -> None:
    road = roadint.add_linear_road(seeing, name="x")
    paths = road.adapters["x"].layout.paths
    assert len(paths) == 7 * 3  # projections of every layer
    assert all("language_model.layers" in path for path in paths)
    towers = {path for path, _ in seeing.named_modules() if path.endswith("q_proj")} - {*paths}
    assert len(towers) == 2  # which the tower has
    learning = {name for name, value in seeing.named_parameters() if value.requires_grad}
    assert not learning


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", ["last", "first(2)", "all"])
def test_a_row_of_a_mixed_batch_is_the_row_alone(
    seeing: PreTrainedModel, side: str, position: str
) -> None:
    road, inputs = edited(seeing, position), inputs_of(seeing, COUNTS, side)
    plain = copy.deepcopy(seeing)(**inputs).logits
    mixed = road(**inputs, compose=COMPOSE).logits
    for row, compose in enumerate(COMPOSE):
        single = road(**alone(inputs, COUNTS, row), compose=compose).logits[0]
        torch.testing.assert_close(mixed[row, kept(inputs, row)], single, **TOLERANCE)
        changed = (mixed[row] - plain[row])[kept(inputs, row)].abs().max() > 0.1
        assert changed == (compose is not None)


@torch.no_grad()
def test_no_composition_is_the_base_model_and_images_are_seen(seeing: PreTrainedModel) -> None:
    inputs = inputs_of(seeing, COUNTS)
    plain = copy.deepcopy(seeing)(**inputs)
    road = edited(seeing)
    found = road(**inputs, compose=None)
    assert type(found) is type(plain)
    assert torch.equal(found.logits, plain.logits)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    for compose in (None, COMPOSE):
        ours, others = (road(**each, compose=compose).logits for each in (inputs, other))
        different = (ours - others).abs().amax(dim=(1, 2)) > 1e-2
        assert different.tolist() == [count > 0 for count in COUNTS]


@torch.no_grad()
def test_generated_rows_are_those_of_the_row_alone(seeing: PreTrainedModel) -> None:
    road, inputs = edited(seeing), inputs_of(seeing, COUNTS)
    greedy: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    mixed = road.generate(**inputs, **greedy, compose=COMPOSE)
    plain = copy.deepcopy(seeing).generate(**inputs, **greedy)
    for row, compose in enumerate(COMPOSE):
        single = road.generate(**alone(inputs, COUNTS, row), **greedy, compose=compose)
        assert mixed[row, -6:].tolist() == single[0, -6:].tolist()
    assert not torch.equal(mixed, plain)
    assert torch.equal(mixed[1], plain[1])  # of composition None
    assert torch.equal(road.generate(**inputs, **greedy, compose=None), plain)


@torch.no_grad()
@pytest.mark.parametrize("token", ["of an image", "of the text"])
def test_positions_count_images_tokens_and_the_texts(seeing: PreTrainedModel, token: str) -> None:
    """Against an edit by a hook, of the token at this column of the merged sequence."""
    inputs = alone(inputs_of(seeing, COUNTS), COUNTS, 2)
    of_image = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    column = of_image[1] if token == "of an image" else of_image[-1] + 2
    road = edited(seeing, f"at({column})")
    edit = road.interventions[0]
    matrix = edit.rotation().dense().detach()
    plain = copy.deepcopy(seeing)

    def turn(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[:, column] = hidden[:, column] @ matrix.T
        return output

    plain.get_submodule("model.language_model.layers.1").register_forward_hook(turn)
    expected = plain(**inputs).logits
    found = road(**inputs, compose="a + b").logits
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert (found - seeing(**inputs).logits).abs().max() > 0.1


@torch.no_grad()
def test_merging_acts_as_the_adapter_on_images_too(seeing: PreTrainedModel) -> None:
    inputs = inputs_of(seeing, COUNTS)
    plain = copy.deepcopy(seeing)(**inputs).logits
    road = edited(seeing)
    for compose in ("x", "y"):
        live = road(**inputs, compose=compose).logits
        with road.merged(compose) as merged:
            found = merged(**inputs).logits
        for row in range(len(COUNTS)):
            where = row, kept(inputs, row)
            torch.testing.assert_close(found[where], live[where], rtol=1e-3, atol=1e-3)
    assert torch.equal(seeing(**inputs).logits, plain)


def test_a_step_trains_what_composes_and_nothing_else(seeing: PreTrainedModel) -> None:
    road, inputs = edited(seeing), inputs_of(seeing, COUNTS, "right")
    seeing.requires_grad_(False)
    before = {name: value.clone() for name, value in seeing.named_parameters()}
    rows = torch.arange(len(COUNTS))
    ends = inputs["attention_mask"].sum(1) - 1
    labels = torch.tensor([5, 6, 7, 8])
    optimizer = torch.optim.Adam(road.trained_parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        nll = road.token_nll(torch.stack([rows, ends]), labels, **inputs, compose=COMPOSE)
        logits = road(**inputs, compose=COMPOSE).logits[rows, ends]
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(nll, expected, **TOLERANCE)
        optimizer.zero_grad()
        nll.mean().backward()
        optimizer.step()
        losses.append(nll.detach())
    assert losses[-1][0] < losses[0][0]
    torch.testing.assert_close(losses[-1][1], losses[0][1])  # of composition None
    for name, value in seeing.named_parameters():
        assert value.grad is None
        assert torch.equal(value, before[name])
    assert all(value.grad is not None for value in road.trained_parameters())


def test_blocks_outside_of_a_rows_composition_get_no_gradient(seeing: PreTrainedModel) -> None:
    road, inputs = edited(seeing), inputs_of(seeing, COUNTS, "right")
    road(**inputs, compose=["a", None, "a", "a"]).logits.square().sum().backward()
    gradient = road.interventions[0].theta.grad
    assert gradient is not None
    a, b = gradient.split(len(gradient) // 2)
    assert bool((a != 0).all())
    assert bool((b == 0).all())


@torch.no_grad()
def test_a_checkpoint_comes_back_on_the_same_kind_of_model(
    seeing: PreTrainedModel, tmp_path: Path
) -> None:
    inputs = inputs_of(seeing, COUNTS)
    road = edited(seeing)
    road.save_pretrained(tmp_path)
    loaded = RoadModel.from_pretrained(copy.deepcopy(seeing), tmp_path)
    found, expected = (each(**inputs, compose=COMPOSE).logits for each in (loaded, road))
    assert torch.equal(found, expected)


@torch.no_grad()
def test_states_are_collected_with_the_images(seeing: PreTrainedModel) -> None:
    inputs = alone(inputs_of(seeing, COUNTS), COUNTS, 0)
    states = edited(seeing).collect(None, inputs, "all")[0][0]
    hidden = seeing(**inputs, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(states, hidden)
