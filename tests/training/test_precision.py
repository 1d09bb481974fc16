"""Automatic mixed precision, as Trainer has it: the base model computes in bfloat16, what is learned stays in float32."""

from typing import Any

import pytest
import torch
from torch import Tensor

import roadint
from roadint import Recipe, RoadError, RoadIntervention, RoadModel
from roadint.training.base_trainer import training_arguments
from tests.helpers import HALVES, IDS, SHORT, build, rows


def learned(tokenizer: Any, adapters: bool, **settings: Any) -> tuple[Tensor, float, set[Any]]:
    """What a training learns, its last loss, and the dtypes of the gradients."""
    model = build("gemma3")
    road = RoadModel(model) if adapters else RoadModel(model, RoadIntervention(layer=1, basis="random", subspaces=HALVES))  # fmt: skip
    for name in "ab" if adapters else "":
        road.add_adapter(name, layers=[1, 2], lora_rank=2)
    before = [value.detach().clone() for value in road.trained_parameters()]
    dtypes: set[Any] = set()
    for value in road.trained_parameters():
        value.register_post_accumulate_grad_hook(lambda each: dtypes.add(each.grad.dtype))
    data = {"a": rows("aaaaaaaa"), "b": rows("bbbbbbbb")}
    summary = roadint.train(road, tokenizer, data, **{**SHORT, "lr": 1e-2, "max_completion": 6, **settings})  # fmt: skip
    assert {value.dtype for value in road.trained_parameters()} == {torch.float32}
    moved = [now.detach() - old for now, old in zip(road.trained_parameters(), before, strict=True)]
    return torch.cat([each.flatten() for each in moved]), summary["loss"]["loss"], dtypes


@pytest.mark.parametrize("adapters", [False, True])
def test_it_learns_what_full_precision_learns(tokenizer: Any, adapters: bool) -> None:
    full, loss, _ = learned(tokenizer, adapters)
    found = {}
    for reuse in (False, True):
        half, half_loss, dtypes = learned(
            tokenizer, adapters, mixed_precision="bf16", prefix_reuse=reuse
        )
        assert dtypes == {torch.float32}
        assert half_loss == pytest.approx(loss, rel=5e-3)
        found[reuse] = float((half - full).norm() / full.norm())
    # Not the same: bfloat16 did compute; and near: Adam's steps depend on the signs of gradients.
    assert all(1e-5 < difference < 0.1 for difference in found.values())


def test_edits_stay_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    edit = RoadIntervention(layer=1, basis="random", subspaces=HALVES)
    road = RoadModel(build("gemma3"), edit)
    with torch.no_grad():
        edit.theta.normal_()
    states = torch.randn(4, 3, 32)
    expected = edit(states, subspaces="a")
    plain, autocasts = edit.edit, []

    def watched(*args: Any) -> Tensor:
        autocasts.append(torch.is_autocast_enabled("cpu"))
        return plain(*args)

    monkeypatch.setattr(edit, "edit", watched)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(edit(states, subspaces="a"), expected)
        road(IDS, compose="a")
    assert autocasts == [False, False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there float16 is possible")
def test_what_this_machine_lacks_is_said(tmp_path: Any) -> None:
    with pytest.raises(RoadError, match="mixed_precision=fp16 needs a GPU"):
        training_arguments(Recipe(mixed_precision="fp16"), tmp_path)
    with pytest.raises(RoadError, match="mixed_precision='tf32' does not fit: expected 'bf16'"):
        Recipe(mixed_precision="tf32")
