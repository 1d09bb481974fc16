"""Loading keeps the objects that others hold: parameters, hooks, modes, and the site that was said."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roadint import RoadError, RoadInterchange, RoadIntervention, RoadModel
from roadint.interop.pyvene import load
from roadint.interventions.loreft import LoreftIntervention
from roadint.interventions.pyvene.patches import pyvene as pv
from tests.helpers import WIDTH, build

HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}


def trained(kind: Any = RoadIntervention, **arguments: Any) -> Any:
    torch.manual_seed(0)
    made = kind(**{"embed_dim": 8, **arguments})
    with torch.no_grad():
        for name, each in made.named_parameters():
            if "original" not in name:
                each.normal_()
    return made


@pytest.mark.parametrize(
    ("saved", "other"),
    [
        (trained(subspaces=HALVES), RoadIntervention(embed_dim=8)),
        (
            trained(subspaces=HALVES, basis="hadamard", position="all"),
            RoadIntervention(embed_dim=8),
        ),
        (trained(variant="road_4"), RoadIntervention(embed_dim=8)),
        (trained(variant="road_4", subspaces=HALVES), RoadIntervention()),
        (
            trained(RoadInterchange, stages=3, learn="mask"),
            RoadInterchange(embed_dim=8, learn="mask"),
        ),
        (
            trained(LoreftIntervention, rank=3),
            LoreftIntervention(
                embed_dim=8, rank=3, subspaces=HALVES | {"a": "[0, 1)", "b": "[1, d)"}
            ),
        ),
        (trained(LoreftIntervention, rank=3), LoreftIntervention(rank=2)),
    ],
)
def test_an_optimizer_made_before_trains_what_was_loaded(saved: Any, other: Any) -> None:
    before = dict(other.named_parameters())
    frozen_name, frozen = list(before.items())[-1]
    frozen.requires_grad_(False)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    called = []
    other.register_forward_hook(lambda *_: called.append(1))
    other.eval()
    other.load_state_dict(saved.state_dict())
    assert not other.training
    assert not frozen.requires_grad
    assert {name: id(each) for name, each in other.named_parameters()} == {
        name: id(each) for name, each in before.items()
    }
    base, source = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other(base, source), saved.eval()(base, source))
    assert called == [1]
    assert other.spec() == saved.spec()
    was = {name: each.detach().clone() for name, each in other.named_parameters()}
    other(base, source).pow(3).sum().backward()  # which a rotation does not leave as it is
    optimizer.step()
    assert torch.equal(frozen, was.pop(frozen_name))
    assert all(
        not torch.equal(dict(other.named_parameters())[name], value) for name, value in was.items()
    )


OPTIMIZERS: list[tuple[Any, torch.optim.Optimizer]] = []


class WithOptimizer(RoadIntervention):
    """Whatever makes one, its optimizer is there before the values."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        OPTIMIZERS.append((self, torch.optim.SGD(self.parameters(), lr=0.1)))


def optimizer_of(intervention: Any) -> torch.optim.Optimizer:
    return next(optimizer for made, optimizer in OPTIMIZERS if made is intervention)


@pytest.mark.parametrize("variant", ["road_1", "road_4"])
@pytest.mark.parametrize("reader", ["pyvene", "roadint", "pyvene, in place"])
def test_an_optimizer_made_before_pyvenes_load_trains_what_acts(
    reader: str, variant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = build(), str(tmp_path / "saved")
    saved = trained(WithOptimizer, layer=1, embed_dim=WIDTH, variant=variant, subspaces=HALVES)
    pv.IntervenableModel([saved], model).save(folder)
    if reader == "pyvene":
        loaded = pv.IntervenableModel.load(folder, model)
    elif reader == "roadint":
        loaded = load(folder, model, classes=[WithOptimizer])
    else:
        loaded = pv.IntervenableModel([WithOptimizer(layer=1)], model)
        from_cpu = partial(torch.load, map_location="cpu")
        monkeypatch.setattr(torch, "load", lambda file, **_: from_cpu(file))
        loaded.load_intervention(folder, include_model=False)
    (intervention,) = loaded.interventions.values()
    ids = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(0))

    def logits(wrapped: Any) -> Tensor:
        where = {"sources->base": (None, [[[5]] * 2])}
        return wrapped({"input_ids": ids}, unit_locations=where)[1].logits

    first = logits(loaded)
    assert torch.equal(first, logits(pv.IntervenableModel([saved], model)))
    first.square().mean().backward()
    optimizer_of(intervention).step()
    assert not torch.equal(logits(loaded), first)
    assert all(
        not torch.equal(value, saved.values()[name])
        for name, value in intervention.values().items()
    )


def test_a_parameter_that_the_values_have_none_of_goes() -> None:
    masked = RoadInterchange(embed_dim=8, learn="mask")
    theta = masked.theta
    masked.load_state_dict(trained(RoadInterchange).state_dict())
    assert [name for name, _ in masked.named_parameters()] == ["theta"]
    assert masked.theta is theta
    masked.load_state_dict(trained(RoadInterchange, learn="mask", stages=2).state_dict())
    assert masked.theta is theta
    assert masked.mask.shape == (8,)


def test_a_constant_source_comes_and_goes_with_the_values() -> None:
    constant = trained(RoadInterchange, source_representation=torch.arange(8.0))
    given = trained(RoadInterchange, stages=2)
    interchange = copy.deepcopy(constant)
    interchange.load_state_dict(given.state_dict())
    assert interchange.source_representation is None
    assert not interchange.is_source_constant
    interchange.load_state_dict(constant.state_dict())
    assert torch.equal(interchange.source_representation, torch.arange(8.0))
    assert interchange.is_source_constant


def test_what_is_refused_changes_nothing() -> None:
    intervention = trained(variant="road_4", basis="hadamard")
    before, spec = copy.deepcopy(intervention.state_dict()), intervention.spec()
    state = {**extra(), "theta": torch.ones(3)}
    with pytest.raises(RoadError, match="theta is"):
        intervention.load_state_dict(state)
    assert intervention.spec() == spec
    assert all(
        torch.equal(value, before[name]) for name, value in intervention.state_dict().items()
    )


def test_values_do_not_move_an_intervention_from_the_site_that_was_said() -> None:
    state = trained(layer=2, component="mlp_output", position="all").state_dict()
    said = RoadIntervention(layer=1, component="block_output", embed_dim=8)
    said.load_state_dict(state)
    assert (said.layer, said.component, str(said.position)) == (1, "block_output", "all")
    for silent in (RoadIntervention(embed_dim=8), RoadIntervention()):
        silent.load_state_dict(state)
        assert (silent.layer, silent.component) == (2, "mlp_output")
    model = build()
    road, other = RoadModel(model, RoadIntervention()), RoadModel(model, RoadIntervention(layer=2))
    torch.nn.init.normal_(other.interventions[0].theta)
    road.load_state_dict(other.state_dict())
    assert road.interventions[0].layer == 0
    ids = torch.randint(3, 100, (1, 4))
    assert not torch.equal(road(input_ids=ids).logits, model(ids).logits)


def test_one_at_several_layers_comes_back_at_each(tmp_path: Any) -> None:
    model, shared = build(), RoadIntervention()
    intervenable = pv.IntervenableModel(
        [{"layer": layer, "intervention": shared} for layer in (0, 2)], model
    )
    torch.nn.init.normal_(shared.theta)
    intervenable.save(str(tmp_path / "saved"))
    for loaded in (
        load(tmp_path / "saved", model),
        pv.IntervenableModel.load(str(tmp_path / "saved"), model),
    ):
        assert [each.layer for each in loaded.interventions.values()] == [0, 2]
        assert all(torch.equal(each.theta, shared.theta) for each in loaded.interventions.values())


def extra(**changed: Any) -> dict[str, Tensor]:
    state = trained(layer=1).state_dict()
    arguments = json.loads(bytes(state["_extra_state"].tolist()).decode())
    return {**state, "_extra_state": as_bytes(json.dumps({**arguments, **changed}))}


def as_bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (extra(embed_dim=60_000), "embed_dim 60000"),
        (extra(embed_dim=10**12), "embed_dim 10"),
        (extra(embed_dim=-2), "embed_dim -2"),
        (extra(embed_dim="8"), "embed_dim '8'"),
        (extra(embed_dim=None), "embed_dim None"),
        (extra(embed_dim=16, basis="random"), "theta is"),
        (extra(variant="road_2"), "theta is"),
        (extra(variant=[1]), "variant"),
        (extra(stages=10**9), "no argument 'stages'"),
        (extra(subspace={"a": 1}), "subspace"),
        (extra(layer=-4), "layer -4 is no index"),
        ({**extra(), "_extra_state": as_bytes("[1, 2]")}, "expected a mapping"),
        ({**extra(), "_extra_state": as_bytes("{")}, "can't be read"),
        ({**extra(), "_extra_state": as_bytes("[" * 100_000)}, "can't be read"),
        ({**extra(), "_extra_state": torch.tensor([0.5])}, "can't be read"),
        ({"theta": torch.ones(4), "alpha": torch.ones(4)}, "does not know its width"),
    ],
)
def test_broken_arguments_are_refused_before_anything_is_made(
    state: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(RoadError, match=message):
        RoadIntervention().load_state_dict(state)


def test_another_width_is_refused() -> None:
    with pytest.raises(RoadError, match="values for width 8 in an intervention of width 32"):
        RoadIntervention(embed_dim=WIDTH).load_state_dict(extra())
