"""LoReFT, DiReFT and steering vectors against their formulas, in compositions, checkpoints, training and pyvene; RoAd's independence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import roadint
from roadint import RoadError, RoadInterchange, RoadIntervention, RoadModel
from roadint.grammar.composition import Composition
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.direft import DireftIntervention
from roadint.interventions.loreft import LoreftIntervention
from roadint.interventions.registry import kind_of
from roadint.interventions.steering import SteeringIntervention
from roadint.rotation.basis import Axes, Basis
from tests.helpers import VARIANTS, WIDTH, build, trained

HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}
KINDS = ["road", "loreft", "direft", "steering"]


def made(kind: str, **arguments: Any) -> SubspaceIntervention:
    """An intervention of the kind, with random values."""
    size = {} if kind == "road" else {"rank": 4}
    intervention = kind_of(kind)(
        **{"embed_dim": WIDTH, "layer": 1, "subspaces": HALVES, **size, **arguments}
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in intervention.values().items():
            if name.startswith("rotate_layer"):  # its diagonal holds signs
                value.add_(0.3 * torch.randn(value.shape, generator=generator).tril(-1))
            elif name == "alpha":
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            else:
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return intervention


def edited(
    intervention: SubspaceIntervention, h: torch.Tensor, *compositions: str | None
) -> torch.Tensor:
    parsed = [
        roadint.Composition.parse(each, list(intervention.partition)) for each in compositions
    ]
    return intervention.edit(h, intervention.rows(intervention.strengths(parsed)))


def test_each_row_through_its_own_rows_of_the_formula() -> None:
    h = torch.randn(3, WIDTH)
    shares = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0.5, 0.5], [1, 1, 1, 1]])
    loreft = made("loreft")
    weight, bias, rotate = loreft._current()
    torch.testing.assert_close(rotate.T @ rotate, torch.eye(4), atol=1e-5, rtol=0)
    expected = h + (shares * (h @ weight.T + bias - h @ rotate)) @ rotate.T
    torch.testing.assert_close(edited(loreft, h, "a", "0.5*b", "a + b"), expected)
    direft = made("direft")
    weight, bias, project = direft._current()
    torch.testing.assert_close(
        edited(direft, h, "a", "0.5*b", "a + b"), h + (shares * (h @ weight.T + bias)) @ project
    )
    steering = made("steering")
    torch.testing.assert_close(
        edited(steering, h, "a", "0.5*b", "a + b"), h + shares @ steering.values()["vectors"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_can_become_the_new_one(kind: str) -> None:
    """`rescale` against a composition with those strengths."""
    intervention, h = made(kind), torch.randn(2, WIDTH)
    expected = edited(intervention, h, "0.7*a", "0.7*a - 2*b")
    intervention.rescale({"a": 0.7, "b": -2})
    torch.testing.assert_close(
        edited(intervention, h, "a", "a + b"), expected, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(RoadError, match="unknown subspace 'c'"):
        intervention.rescale({"c": 1.0})
    before = {name: value.clone() for name, value in intervention.state_dict().items()}
    with pytest.raises(RoadError, match="unknown subspace 'all'"):  # in a composition it adds up
        intervention.rescale({"all": 0.5})
    torch.testing.assert_close(dict(intervention.state_dict()), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_strengths_of_large_angles_and_negative_scales_too(variant: Any) -> None:
    """They are at less strength what a composition makes of them, not of the same turn below half a circle."""
    edit = RoadIntervention(layer=1, subspaces=HALVES, variant=variant, embed_dim=WIDTH)
    with torch.no_grad():
        edit.theta.uniform_(-9, 9, generator=torch.Generator().manual_seed(0))
        edit.alpha.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
        edit.alpha[::2] *= -1
    h = torch.randn(2, WIDTH)
    expected = edited(edit, h, "0.5*a + 0.7*b", "0.5*a - 0.7*b")
    edit.rescale({"a": 0.5})
    torch.testing.assert_close(
        edited(edit, h, "a + 0.7*b", "a - 0.7*b"), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_model_and_through_a_checkpoint(llama: Any, kind: str, tmp_path: Path) -> None:
    road = RoadModel(llama, made(kind))
    ids = torch.randint(3, 100, (4, 9))
    compose = [None, "a", "b", "a + 0.5*b"]
    logits = road(input_ids=ids, compose=compose).logits
    assert torch.equal(logits[0], llama(input_ids=ids).logits[0])
    assert not torch.allclose(logits[1, -1], llama(input_ids=ids).logits[1, -1])
    road.save_pretrained(tmp_path)
    loaded = RoadModel.from_pretrained(llama, tmp_path)
    assert loaded.interventions[0].kind == kind
    assert loaded.trainable_count == road.trainable_count
    torch.testing.assert_close(loaded(input_ids=ids, compose=compose).logits, logits)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_as_a_pyvene_intervention(llama: Any, kind: str) -> None:
    import pyvene as pv

    intervention = made(kind)
    road = RoadModel(llama, intervention)
    ids = torch.randint(3, 100, (2, 6))
    wrapped = pv.IntervenableModel(roadint.pyvene_config(llama, intervention), llama)
    _, output = wrapped(
        {"input_ids": ids},
        unit_locations={"sources->base": (None, [[[5]] * 2])},
        subspaces=[["a", [0, 1]]],
    )
    torch.testing.assert_close(output.logits, road(input_ids=ids, compose=["a", "a + b"]).logits)


@pytest.mark.parametrize("kind", ["loreft", "road"])
def test_gradients_reach_what_learns_alone(llama: Any, kind: str) -> None:
    road = RoadModel(llama, made(kind))
    ids = torch.randint(3, 100, (1, 6))
    gradients = []
    for learning in ("a", "all"):
        road.zero_grad()
        road(input_ids=ids, compose="a + b", learning=learning).logits[
            0, -1
        ].square().sum().backward()
        gradients.append(next(iter(road.interventions[0].parameters())).grad.clone())
    count = len(gradients[0]) // 2
    assert torch.equal(gradients[0][count:], torch.zeros_like(gradients[0][count:]))
    torch.testing.assert_close(gradients[0][:count], gradients[1][:count])
    assert bool((gradients[1][count:] != 0).any())


def steps(intervention: SubspaceIntervention, *compositions: str) -> dict[str, torch.Tensor]:
    """What each other subspace does to a state, before and after training these compositions: the largest difference."""
    h = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(5))
    before = {name: edited(intervention, h, *[name] * 64).detach() for name in ("a", "b")}
    optimizer = torch.optim.AdamW(intervention.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(5):
        for composition in compositions:
            optimizer.zero_grad()
            (edited(intervention, h, *[composition] * 64) - 1).square().mean().backward()
            optimizer.step()
    return {
        name: (edited(intervention, h, *[name] * 64).detach() - before[name]).abs().max()
        for name in before
    }


@pytest.mark.parametrize("basis", ["identity", "random", "hadamard"])
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_training_one_subspace_of_road_leaves_the_others_bit_for_bit(
    variant: str, basis: str
) -> None:
    """The paper's argument for subspaces (section 4.3); of LoReFT it does not hold."""
    road = made("road", variant=variant, basis=basis)
    other = {name: value[WIDTH // 4 :].clone() for name, value in road.values().items()}
    moved = steps(road, "a")
    assert moved["a"] > 0.01
    assert moved["b"] == 0
    assert all(
        torch.equal(value, road.values()[name][WIDTH // 4 :]) for name, value in other.items()
    )


def test_training_one_subspace_of_loreft_moves_the_others() -> None:
    moved = steps(made("loreft"), "a")
    assert moved["b"] > 0.01


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_trainer_trains_and_counts(
    llama: Any, tokenizer: Any, kind: str, tmp_path: Path
) -> None:
    rows = [{"instruction": f"say {index}", "output": "zzzzzz"} for index in range(8)]
    settings = {
        "kind": kind,
        "rank": 4,
        "layers": [1],
        "subspaces": HALVES,
        "eos": [],
        "companions": {},
        "lrs": {},
        "strengths": {},
    }
    recipe = roadint.Recipe.load(
        "composition", {**settings, "template": "plain", "lr": 2e-2, "epochs": 30, "micro_batch": 8}
    )
    road = RoadModel(llama, recipe.interventions())
    summary = roadint.train(road, tokenizer, {"a": rows}, recipe, out=tmp_path / "run", quiet=True)
    counts = {"loreft": 8 * WIDTH + 4, "direft": 8 * WIDTH + 4, "steering": 4 * WIDTH}
    assert summary["trainable"] == counts[kind]
    losses = [
        json.loads(line)["loss/a"]
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0] - 0.5
    assert RoadModel.from_pretrained(llama, tmp_path / "run").interventions[0].kind == kind


def test_the_numbers_of_the_composition_experiment() -> None:
    halves = {"german": "[0, d/2)", "english": "[d/2, d)"}
    assert LoreftIntervention(rank=8, embed_dim=640, subspaces=halves).trainable_count == 10_248
    assert RoadIntervention(embed_dim=640, subspaces=halves).trainable_count == 640
    assert (
        str(LoreftIntervention(rank=8, embed_dim=640, subspaces=halves).partition["english"])
        == "[4, 8)"
    )


def test_bad_input_is_named(llama: Any) -> None:
    with pytest.raises(
        RoadError, match="unknown kind of intervention 'lorefft'.*did you mean 'loreft'"
    ):
        kind_of("lorefft")
    with pytest.raises(RoadError, match="rank 64 does not fit width 32"):
        DireftIntervention(rank=64, embed_dim=WIDTH)
    with pytest.raises(
        RoadError, match="SteeringIntervention has no argument 'ranks'.*did you mean 'rank'"
    ):
        SteeringIntervention(ranks=4)
    with pytest.raises(RoadError, match="no argument 'variant'"):
        LoreftIntervention(variant="road_1")
    assert trained(llama).names == ["a", "b"]


def test_torchs_defaults_change_nothing() -> None:
    """Of dtypes and devices, which a program may set for models of its own."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        road = RoadModel(build("llama").float())
        adapter = road.add_adapter("x", lora_rank=2, subspace="[0, d/2)")
        edit = RoadIntervention(layer=1, subspaces=HALVES, embed_dim=WIDTH, basis="hadamard")
        strengths = edit.strengths([Composition((("a", 0.3),))])
        axes = Basis("pca").frame(WIDTH)
        boundary = RoadInterchange(embed_dim=WIDTH, learn="boundary")
        gates = boundary.gates()
        assert isinstance(axes, Axes)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {
        value.dtype for value in (*adapter.parameters(), *adapter.buffers(), *edit.parameters())
    } == {torch.float32}
    assert strengths.dtype == gates.dtype == axes.q.dtype == torch.float32
    with torch.device("meta"):
        frame = Basis("hadamard").frame(WIDTH)
    assert frame is not None
    assert frame.into(torch.ones(1, WIDTH)).device.type == "cpu"
