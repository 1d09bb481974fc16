"""The pilot studies' formulas, against their definitions."""

import pytest
import torch

from roadint import RoadError
from roadint.inspection.pilot import PilotClassifier, direction_change, magnitude_change


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
    first = model._first(x)
    expected = {
        "both": x @ model.weight.T,
        "magnitude": x.norm(dim=1)[:, None] * model.weight.norm(dim=1)[None],
        "angle": x @ model.weight.T / (x.norm(dim=1)[:, None] * model.weight.norm(dim=1)[None]),
    }
    torch.testing.assert_close(first, expected[reads])
    assert torch.allclose(model(x), model(x.flip(1))) == (reads == "magnitude")
    assert torch.allclose(model(x), model(3 * x), atol=1e-6) == (reads == "angle")


def test_unknown_reading() -> None:
    with pytest.raises(RoadError, match="reads"):
        PilotClassifier(4, 2, "size")  # type: ignore[arg-type]
