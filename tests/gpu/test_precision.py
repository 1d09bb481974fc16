"""Half precision on a GPU: what composes nothing is the base model bit for bit, and edits are near float32's."""

import warnings
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import roadint
from roadint import RoadIntervention, RoadModel
from tests.device.helpers import turned
from tests.helpers import ARCHITECTURES, HALVES, IDS, SHORT, build, padded, prompts, rows

HALF = [torch.bfloat16, torch.float16]


def road_in(dtype: torch.dtype, device: torch.device, architecture: str = "llama") -> RoadModel:
    model: PreTrainedModel = build(architecture).to(device, dtype)
    road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES, position="last(2)"))
    road.add_adapter("x", targets="all-linear")
    with torch.no_grad():
        for parameter in (*road.interventions.parameters(), *road.adapters.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.1 * noise.to(device))
    return road.eval()


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_composes_nothing_is_the_base_model(
    architecture: str, dtype: torch.dtype, device: torch.device
) -> None:
    road, ids = road_in(dtype, device, architecture), IDS.to(device)
    bare = road.model(ids).logits
    assert torch.equal(road(ids, compose=None).logits, bare)
    mixed = road(ids, compose=["a", None, "a + x", None]).logits
    assert torch.equal(mixed[1::2], bare[1::2])
    assert not torch.equal(mixed[::2], bare[::2])
    road.model.requires_grad_(False)
    with torch.no_grad():  # the kernels, where no gradient is asked for
        mixed = road(ids, compose=["a", None, "a + x", None]).logits
    assert torch.equal(mixed[1::2], bare[1::2])


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("compose", ["a", "x", ["a", "b + x", None, "0.5*x"]], ids=str)
def test_edits_are_near_those_of_float32(
    dtype: torch.dtype, compose: Any, device: torch.device
) -> None:
    """By as much as the bare model's own numbers are."""
    ids = IDS.to(device)
    half, whole = road_in(dtype, device), road_in(torch.float32, device)
    found, expected = (road(ids, compose=compose).logits.float() for road in (half, whole))
    bare = (half.model(ids).logits.float() - whole.model(ids).logits).norm()
    assert (found - expected).norm() < 4 * bare
    assert half(ids, compose=compose).logits.dtype == dtype


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(dtype: torch.dtype, device: torch.device) -> None:
    road = road_in(dtype, device)
    texts = prompts([6, 4, 5, 3])
    batch = {name: each.to(device) for name, each in padded(texts, "left").items()}
    compose = ["a", "b", "a + x", None]
    together = road(**batch, compose=compose).logits[:, -1].float()
    for row, text in enumerate(texts):
        alone = road(text[None].to(device), compose=compose[row]).logits[0, -1].float()
        torch.testing.assert_close(
            together[row], alone, rtol=0.1, atol=0.05 * float(alone.abs().max())
        )


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_merged_and_back_bit_for_bit(dtype: torch.dtype, device: torch.device) -> None:
    road = road_in(dtype, device)
    before = {name: value.clone() for name, value in road.model.state_dict().items()}
    expected = road(IDS.to(device), compose="x").logits.float()
    with road.merged("x") as plain:
        found = plain(IDS.to(device)).logits.float()
        largest = float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * largest)
    assert all(torch.equal(before[name], each) for name, each in road.model.state_dict().items())


def test_trains_in_bfloat16(device: torch.device, tokenizer: Any) -> None:
    data = {"a": rows("abab"), "b": rows("xyz")}
    losses = []
    for settings in ({}, {"prefix_reuse": False}):
        model = build().to(device, torch.bfloat16)
        road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES))
        roadint.train(road, tokenizer, data, **{**SHORT, **settings})
        assert {each.dtype for each in road.trained_parameters()} == {torch.float32}
        assert bool((road.interventions[0].theta != 0).all())
        losses.append(road.training_summary["loss"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_step_of_generate_waits_for_nothing_of_ours(device: torch.device) -> None:
    """torch tells where the host waits; a step may wait where the bare model's does."""

    settings = {"do_sample": False, "eos_token_id": None}

    def waits(compose: Any, tokens: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                road.generate(ids, compose=compose, max_new_tokens=tokens, **settings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(each.message) for each in told)

    ids = IDS.to(device)
    road = road_in(torch.bfloat16, device)
    turned(road.interventions)
    mixed = ["a", "a + x", None, "0.5*x"]
    for compose in (None, mixed):
        waits(compose, 2)
    bare = waits(None, 9) - waits(None, 3)
    assert bare > 0  # it looks whether all rows have ended
    assert waits(mixed, 9) - waits(mixed, 3) == bare
