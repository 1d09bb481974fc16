"""Rates of their own, decay toward the identity, bounds of the scale, strengths that become 1; principal axes from the prompts."""

from pathlib import Path
from typing import Any

import pytest
import torch

import roadint
from roadint import RoadError, RoadIntervention, RoadModel, RoadTrainer
from roadint.data.collate import Collator, tokenize
from roadint.training.axes import fit_axes
from roadint.training.constraints import Constraints
from tests.helpers import HALVES, SHORT, WIDTH, build, rows, trained

HALF = WIDTH // 4
DATA = {"a": rows("aaaaaaaa"), "b": rows("zzzzzzzz")}


def values(llama: Any, tokenizer: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """θ and α after a short training."""
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    roadint.train(road, tokenizer, DATA, **{**SHORT, **settings})
    return road.interventions[0].theta.detach(), road.interventions[0].alpha.detach()


def test_a_subspace_with_a_rate_of_its_own(llama: Any, tokenizer: Any) -> None:
    plain, half, still = (
        values(llama, tokenizer, lrs=lrs)[0] for lrs in ({}, {"b": 2.5e-2}, {"b": 0.0})
    )
    assert torch.equal(still[HALF:], torch.zeros(HALF))
    # Of the first step exactly half, later steps see other gradients.
    assert 0.3 < float(half[HALF:].abs().mean() / plain[HALF:].abs().mean()) < 0.7
    assert torch.equal(values(llama, tokenizer, lrs={"a": 5e-2})[0], plain)


def test_decay_goes_to_the_identity(llama: Any) -> None:
    """Without gradients, n steps are a strength of (1 − rate · decay)^n."""
    road = trained(llama)
    site = road.interventions[0]
    theta, alpha = site.theta.detach().clone(), site.alpha.detach().clone()
    optimizer = torch.optim.SGD(site.parameters(), lr=0.1)
    Constraints({}, decay=2.0).install(optimizer, road.interventions)
    for parameter in site.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(3):
        optimizer.step()
    torch.testing.assert_close(site.theta.detach(), 0.8**3 * theta)
    torch.testing.assert_close(site.alpha.detach(), alpha ** (0.8**3))


def test_bounded_scales_and_pure_rotations(llama: Any, tokenizer: Any) -> None:
    theta, alpha = values(llama, tokenizer, max_log_scale=0.0)
    assert torch.equal(alpha, torch.ones(WIDTH // 2))
    assert bool((theta != 0).all())
    _, alpha = values(llama, tokenizer, max_log_scale=0.02)
    assert float(alpha.log().abs().max()) == pytest.approx(0.02, abs=1e-5)


def test_strengths_become_one_after_training(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    whole, _ = values(llama, tokenizer)
    less, _ = values(llama, tokenizer, strengths={"a": 0.5}, out=tmp_path / "run")
    torch.testing.assert_close(less[:HALF], 0.5 * whole[:HALF])
    torch.testing.assert_close(less[HALF:], whole[HALF:])
    loaded = RoadModel.from_pretrained(llama, tmp_path / "run")
    assert torch.equal(loaded.interventions[0].theta, less)


def test_principal_axes_are_measured_where_the_edit_is(
    llama: Any, tokenizer: Any, tmp_path: Path
) -> None:
    road = RoadModel(
        llama, RoadIntervention(layer=1, position="last(2)", basis="pca", subspaces=HALVES)
    )
    roadint.train(road, tokenizer, DATA, out=tmp_path / "run", **SHORT)
    hidden = []
    for row in [*DATA["a"], *DATA["b"]]:
        ids = torch.tensor([tokenizer(row["instruction"])["input_ids"]])
        hidden.append(llama(ids, output_hidden_states=True).hidden_states[2][0, -2:])
    states = torch.cat(hidden)
    states = states - states.mean(0)
    variances = road.interventions[0].frame.into(states).square().sum(0)
    torch.testing.assert_close(
        variances, torch.linalg.svdvals(states).square()[: len(variances)], rtol=1e-3, atol=1e-2
    )
    loaded = RoadModel.from_pretrained(llama, tmp_path / "run")
    ids = torch.randint(3, 90, (2, 7))
    torch.testing.assert_close(loaded(input_ids=ids).logits, road(input_ids=ids).logits)


def test_what_does_not_fit_is_named(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    for settings, message in (
        ({"lrs": {"c": 1e-2}}, "unknown subspace 'c'"),
        ({"strengths": {"c": 1}}, "unknown subspace 'c'"),
        ({"lrs": {"a": "fast"}}, "lrs.a='fast': expected a number"),
    ):
        with pytest.raises(RoadError, match=message):
            values(llama, tokenizer, out=tmp_path / "run", **settings)
    recipe = roadint.Recipe.load(
        "composition",
        {"kind": "loreft", "layers": [1], "subspaces": HALVES, "lrs": {"a": 1e-2}, "strengths": {}},
    )
    with pytest.raises(RoadError, match="are for RoadInterventions"):
        roadint.train(
            RoadModel(llama, recipe.interventions()),
            tokenizer,
            DATA,
            recipe,
            quiet=True,
            **{"rows": 4, "eos": []},
        )


@pytest.mark.parametrize("reuse", [True, False])
def test_a_run_with_measured_axes_goes_on(
    reuse: bool, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """What is computed before the first step runs with the checkpoint's axes."""
    settings = {**SHORT, "save_steps": 2, "prefix_reuse": reuse}
    step, steps = RoadTrainer.training_step, []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    def learn(out: str, *, resume: bool = False) -> RoadModel:
        road = RoadModel(build(), RoadIntervention(layer=1, basis="pca", subspaces=HALVES))
        roadint.train(road, tokenizer, DATA, out=tmp_path / out, resume=resume, **settings)
        return road

    whole = learn("whole").interventions[0]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RoadTrainer, "training_step", stopped)
        learn("stopped")
    gone_on = learn("stopped", resume=True).interventions[0]
    assert torch.equal(gone_on.theta, whole.theta)
    assert torch.equal(gone_on.frame.q, whole.frame.q)


def test_calls_while_axes_are_measured_run_as_ever(tokenizer: Any) -> None:
    """Those of other threads on the same base model, whose hidden states are no rows of the data."""
    road = RoadModel(build(), RoadIntervention(layer=1, basis="pca", subspaces=HALVES))
    listed = tokenize(DATA["a"], tokenizer, "a", template="plain", max_length=64)
    collate, ids = Collator(tokenizer), torch.tensor([[5, 6, 7]])
    expected, answers = road.model(ids).logits, []

    def calling(batch: Any) -> Any:
        answers.append(road.model(ids).logits)
        return collate(batch)

    fit_axes(road, listed, calling)
    assert answers
    assert all(torch.equal(answer, expected) for answer in answers)


def test_axes_that_are_known_stay_when_training_goes_on(llama: Any, tokenizer: Any) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, basis="pca", subspaces=HALVES))
    roadint.train(road, tokenizer, DATA, **SHORT)
    before = road.interventions[0].frame.q.clone()
    roadint.train(road, tokenizer, {"a": rows("qqqqqqqq")}, **SHORT)
    assert torch.equal(road.interventions[0].frame.q, before)


def test_rates_far_above_the_runs_own_are_no_strengths(llama: Any, tokenizer: Any) -> None:
    theta, _ = values(llama, tokenizer, lr=1e-6, lrs={"a": 1e-2})
    assert float(theta[:HALF].abs().max()) > 1e-3
