"""Knock-outs, against models whose blocks were set to the identity by hand."""

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from roadint import LoreftIntervention, RoadError, RoadIntervention, RoadModel
from roadint.inspection.knockout import knocked_out
from tests.helpers import trained

IDS = torch.tensor([[5, 6, 7, 8]])


def logits(road: RoadModel, compose: str = "a") -> torch.Tensor:
    with torch.no_grad():
        return road(input_ids=IDS, compose=compose).logits  # type: ignore[no-any-return]


def states(road: RoadModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in road.interventions.named_parameters()}


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize("order", ["largest", "smallest", "random"])
def test_blocks_at_the_identity_by_hand(llama: PreTrainedModel, variant: Any, order: Any) -> None:
    site = RoadIntervention(layer=1, variant=variant, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"})
    road = trained(llama, site)
    blocks = site.partition["a"].blocks
    extent = (site.theta.remainder(2 * torch.pi) + torch.pi).remainder(2 * torch.pi) - torch.pi
    extent = (extent.square() + site.alpha.log().square()).detach()[blocks]
    extent = extent.reshape(len(blocks), -1).sum(1)
    before, whole, other = states(road), logits(road), logits(road, "b")
    with knocked_out(road, "a", 0.25, order=order, seed=3) as inside:
        assert inside is road
        gone = [block for block in blocks if bool((site.theta[block] == 0).all())]
        assert len(gone) == round(0.25 * len(blocks)) > 0
        assert bool((site.alpha[gone] == 1).all())
        by_hand = copy.deepcopy(road)
        now, now_other = logits(road), logits(road, "b")
    assert all(torch.equal(value, before[name]) for name, value in states(road).items())
    if order != "random":
        chosen = extent[torch.tensor(gone)]
        rest = extent[torch.tensor([block for block in blocks if block not in gone])]
        assert (chosen.min() >= rest.max()) if order == "largest" else (chosen.max() <= rest.min())
    torch.testing.assert_close(logits(by_hand), now)
    assert not torch.allclose(now, whole, atol=1e-4)
    torch.testing.assert_close(now_other, other)


def test_all_shares(llama: PreTrainedModel) -> None:
    """None is the subspace itself, all of it the base model."""
    road = trained(llama)
    whole, base = logits(road), logits(road, "none")
    with knocked_out(road, "a", 0):
        torch.testing.assert_close(logits(road), whole)
    with knocked_out(road, "a", 1):
        torch.testing.assert_close(logits(road), base, atol=1e-5, rtol=1e-5)


def test_rows_of_another_kind_and_what_comes_back(llama: PreTrainedModel) -> None:
    road = RoadModel(llama, LoreftIntervention(layer=1, rank=4, subspaces={"a": "[0, 4)"}))
    with torch.no_grad():
        road.interventions[0].learned_source.weight.normal_()
        road.interventions[0].learned_source.bias.normal_()
    before, base = states(road), logits(road, "none")
    with pytest.raises(ZeroDivisionError), knocked_out(road, "a", 1, order="random"):
        torch.testing.assert_close(logits(road), base, atol=1e-4, rtol=1e-4)
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in states(road).items())
    with pytest.raises(RoadError, match="order='random'"), knocked_out(road, "a", 0.5):
        pass


@pytest.mark.parametrize(
    ("subspace", "share", "order", "said"),
    [
        ("c", 0.5, "largest", "'c'"),
        ("a", 1.5, "largest", "1.5"),
        ("a", float("nan"), "largest", "nan"),
        ("a", True, "largest", "True"),
        ("a", 0.5, "most", "'most'"),
    ],
)
def test_refusals(
    llama: PreTrainedModel, subspace: str, share: float, order: Any, said: str
) -> None:
    road = trained(llama)
    with pytest.raises(RoadError, match=said), knocked_out(road, subspace, share, order=order):
        pass
