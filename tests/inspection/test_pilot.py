"""The pilot studies' formulas, against their definitions."""

import copy
import pickle

import pytest
import torch

from roadint import RoadError
from roadint.inspection.pilot import (
    _FIRST,
    PilotClassifier,
    direction_change,
    fit_classifier,
    magnitude_change,
)


def test_changes_of_size_and_direction() -> None:
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    turned = torch.tensor([[4.0, -3.0], [2.0, 0.0]])
    torch.testing.assert_close(magnitude_change(before, turned), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(direction_change(before, turned), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("reads", ["both", "magnitude", "angle"])
def test_what_each_classifier_reads(reads: str) -> None:
    """The size alone does not see a turn, the angle alone no scaling, both see both."""
    torch.manual_seed(0)
    model = PilotClassifier(6, 2, reads).eval()  # type: ignore[arg-type]
    x = torch.randn(5, 6)
    first = _FIRST[reads](x, model.weight)
    expected = {
        "both": x @ model.weight.T,
        "magnitude": x.norm(dim=1)[:, None] * model.weight.norm(dim=1)[None],
        "angle": x @ model.weight.T / (x.norm(dim=1)[:, None] * model.weight.norm(dim=1)[None]),
    }
    torch.testing.assert_close(first, expected[reads])
    assert torch.allclose(model(x), model(x.flip(1))) == (reads == "magnitude")
    assert torch.allclose(model(x), model(3 * x), atol=1e-6) == (reads == "angle")


def test_a_copy_has_weights_of_its_own() -> None:
    model = PilotClassifier(6, 2, "angle").eval()
    x = torch.randn(5, 6)
    kept, before = copy.deepcopy(model), model(x)
    with torch.no_grad():
        model.weight.zero_()
    torch.testing.assert_close(kept(x), before)
    torch.testing.assert_close(pickle.loads(pickle.dumps(kept))(x), before)


def test_unknown_reading() -> None:
    with pytest.raises(RoadError, match="reads"):
        PilotClassifier(4, 2, "size")  # type: ignore[arg-type]


@pytest.mark.parametrize("reads", ["both", "magnitude", "angle"])
def test_a_classifier_learns_what_it_reads(reads: str) -> None:
    """Classes that differ in direction alone, and in size alone."""
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(256, 8), dim=-1)
    labels = torch.arange(256) % 2
    settings = {"classes": 2, "rate": 2e-2, "epochs": 20}
    turned = directions.clone()
    turned[:, 0] = turned[:, 0].abs() * (2 * labels - 1)
    sized = directions * (0.5 + 2.5 * labels)[:, None]
    shares = []
    epochs: list[PilotClassifier] = []
    for states in (turned, sized):
        fit = fit_classifier(states, labels, reads, after_epoch=epochs.append, **settings)  # type: ignore[arg-type]
        assert not fit.training
        shares.append(float((fit(states).argmax(-1) == labels).float().mean()))
    assert len(epochs) == 2 * 20
    direction, size = shares
    assert (direction > 0.9) == (reads != "magnitude")
    if reads != "both":  # which learns it too, in far more epochs
        assert (size > 0.9) == (reads == "magnitude")


def test_a_regression_and_the_seed() -> None:
    torch.manual_seed(0)
    states = torch.randn(128, 6)
    numbers = states[:, 0]
    settings = {"classes": 1, "rate": 1e-2, "epochs": 30}
    first, again, other = (
        fit_classifier(states, numbers, "both", seed=seed, **settings)  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert float((first(states)[:, 0] - numbers).square().mean().detach()) < 0.1
