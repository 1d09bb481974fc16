"""A "pca" basis that was never measured: the base model runs, no edit acts in silence, nothing is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.interventions.interchange import RoadInterchange
from tests.helpers import IDS, WIDTH, build


def unmeasured(kind: Any = RoadIntervention, **arguments: Any) -> RoadModel:
    return RoadModel(build("llama"), kind(layer=1, basis="pca", **arguments))


@pytest.mark.parametrize("variant", ["road_1", "road_4"])
def test_what_does_not_act_runs_and_what_would_act_is_refused(variant: Any) -> None:
    road = unmeasured(variant=variant, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"})
    base = road.model(input_ids=IDS).logits
    for compose in (None, "none", "0*a"):
        assert torch.equal(road(input_ids=IDS, compose=compose).logits, base)
    generated = road.generate(input_ids=IDS, compose=None, max_new_tokens=2, do_sample=False)
    assert generated.shape == (len(IDS), IDS.shape[1] + 2)
    mixed = [None] * (len(IDS) - 1) + ["a - b"]
    for compose in ("a", "0.5*a", mixed):
        with pytest.raises(RoadError, match="principal axes of basis 'pca' are not measured"):
            road(input_ids=IDS, compose=compose)
    with pytest.raises(RoadError, match="principal axes of basis 'pca' are not measured"):
        road.generate(input_ids=IDS, compose="b", max_new_tokens=2)


@pytest.mark.parametrize("kind", [RoadIntervention, RoadInterchange])
def test_nothing_is_written_until_the_axes_are_known(kind: Any, tmp_path: Path) -> None:
    road = unmeasured(kind)
    with pytest.raises(RoadError, match="a basis 'pca' was never measured: nothing is written"):
        road.save_pretrained(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    road.interventions[0].fit_basis(torch.randn(99, WIDTH))
    road.save_pretrained(tmp_path / "run")
    again = RoadModel.from_pretrained(road.model, tmp_path / "run")
    assert torch.equal(again.interventions[0].frame.q, road.interventions[0].frame.q)
    assert again.interventions[0].frame.measured


def test_a_state_dict_keeps_that_they_are_not_known() -> None:
    road, again = unmeasured(), unmeasured()
    again.interventions[0].fit_basis(torch.randn(99, WIDTH))
    again.load_state_dict(road.state_dict())
    (name,) = again.interventions[0].partition
    with pytest.raises(RoadError, match="principal axes of basis 'pca' are not measured"):
        again(input_ids=IDS, compose=name)
