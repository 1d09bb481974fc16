"""RoadIntervention in pyvene: as an instance, as a type, per-example subspaces, training; the same numbers as RoadModel."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import roadint
from roadint import RoadError, RoadIntervention
from roadint._pyvene import pyvene as pv
from tests.conftest import WIDTH, build, trained

HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}


def run(pv_model: Any, ids: torch.Tensor, positions: list[list[int]], subspaces: Any = None) -> torch.Tensor:
    _, output = pv_model({"input_ids": ids}, unit_locations={"sources->base": (None, [positions])}, subspaces=subspaces)
    return output.logits


def test_equals_road_model_with_a_subspace_a_row(model: PreTrainedModel) -> None:
    road = trained(model, RoadIntervention(layer=1, subspaces=HALVES, position="last(2)"))
    ids = torch.randint(3, 100, (4, 6), generator=torch.Generator().manual_seed(0))
    expected = road(input_ids=ids, compose=["a", "b", "a + b", None]).logits
    pv_model = pv.IntervenableModel(roadint.pyvene_config(model, road.interventions[0]), model)
    locations = [[4, 5]] * 4
    for subspaces in ([["a", "b", "a + b", "none"]], [[[0], [1], [0, 1], []]], [[["a"], ["b"], ["a", "b"], None]]):
        torch.testing.assert_close(run(pv_model, ids, locations, subspaces), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(run(pv_model, ids, locations), road(input_ids=ids, compose="all").logits, rtol=0, atol=1e-6)


def test_rows_do_not_mix_in_a_batch() -> None:
    """pyvene's own helper gives both examples the union of their subspaces."""
    intervention = RoadIntervention(embed_dim=8)
    with torch.no_grad():
        intervention.theta.fill_(1.0)
    base = torch.ones(2, 3, 8)
    out = intervention(base, subspaces=[[0, 1], [4, 5]])
    changed = (out != base).all(dim=1)
    assert changed.tolist() == [[True, True, *[False] * 6], [False] * 4 + [True, True, False, False]]
    assert torch.equal(intervention(base[:, 0], subspaces=[[0, 1], [4, 5]]), out[:, 0])


def test_as_intervention_type(llama: PreTrainedModel) -> None:
    config = pv.IntervenableConfig(
        [{"layer": 1, "component": "block_output", "max_number_of_units": 2, "subspace_partition": [[0, 8], [8, 32]]}],
        intervention_types=RoadIntervention,
    )
    pv_model = pv.IntervenableModel(config, llama)
    (intervention,) = pv_model.interventions.values()
    assert intervention.width == WIDTH
    assert [str(part) for part in intervention.partition.values()] == ["[0, 8)", "[8, 32)"]
    road = trained(llama, intervention)
    ids = torch.randint(3, 100, (2, 6))
    expected = road.forward(input_ids=ids, compose=["subspace_0", "subspace_1"])
    road.interventions[0].position = roadint.Position.parse("last(2)")
    expected = road(input_ids=ids, compose=["subspace_0", "subspace_1"]).logits
    torch.testing.assert_close(run(pv_model, ids, [[4, 5]] * 2, [[[0], [1]]]), expected, rtol=0, atol=1e-6)


def test_generates_in_pyvene_as_in_road_model(llama: PreTrainedModel) -> None:
    road = trained(llama)
    ids = torch.randint(3, 100, (2, 6))
    pv_model = pv.IntervenableModel(roadint.pyvene_config(llama, road.interventions[0]), llama)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    _, tokens = pv_model.generate(
        {"input_ids": ids},
        unit_locations={"sources->base": (None, [[[5]] * 2])},
        subspaces=[["a", "b"]],
        intervene_on_prompt=True,
        **settings,
    )
    assert torch.equal(tokens, road.generate_tokens(input_ids=ids, compose=["a", "b"], **settings))


def test_trains_in_pyvene(llama: PreTrainedModel) -> None:
    pv_model = pv.IntervenableModel(roadint.pyvene_config(llama, RoadIntervention(layer=1, subspaces=HALVES)), llama)
    (intervention,) = pv_model.interventions.values()
    assert list(pv_model.get_trainable_parameters()) == [intervention.theta, intervention.alpha]
    optimizer = torch.optim.Adam(pv_model.get_trainable_parameters(), lr=0.05)
    ids = torch.randint(3, 100, (4, 6), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(12):
        logits = run(pv_model, ids[:, :-1], [[4]] * 4, [["a"] * 4])
        loss = torch.nn.functional.cross_entropy(logits[:, -1], ids[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    half = WIDTH // 4
    assert bool((intervention.theta[:half] != 0).all())
    assert torch.equal(intervention.theta[half:], torch.zeros(half))
    assert torch.equal(intervention.alpha[half:], torch.ones(half))


def test_bf16_models_in_pyvene() -> None:
    model = build("gemma3").bfloat16()
    pv_model = pv.IntervenableModel(roadint.pyvene_config(model, RoadIntervention(layer=1)), model)
    pv_model.to(torch.bfloat16)
    (intervention,) = pv_model.interventions.values()
    assert intervention.theta.dtype == torch.float32
    assert run(pv_model, torch.ones(1, 4, dtype=torch.long), [[3]]).dtype == torch.bfloat16


def test_as_the_mission_writes_it(llama: PreTrainedModel) -> None:
    config = roadint.pyvene_config(llama, [RoadIntervention(layer=2, subspace="[0, d/2)")])
    assert config.representations[0].layer == 2
    (intervention,) = pv.IntervenableModel(config, llama).interventions.values()
    assert str(intervention.partition["road"]) == "[0, 16)"
    assert intervention.trainable_count == 16
    assert RoadIntervention(embed_dim=4096, subspace="[0, d/2)").theta.shape == (2048,)


@pytest.mark.parametrize(("variant", "shape"), [("road_1", (8,)), ("road_2", (8, 2)), ("road_4", (8, 2, 2))])
def test_parameters_are_shaped_by_variant(variant: Any, shape: tuple[int, ...]) -> None:
    intervention = RoadIntervention(embed_dim=16, variant=variant)
    assert intervention.theta.shape == intervention.alpha.shape == shape
    assert intervention.theta.dtype == intervention.alpha.dtype == torch.float32
    assert intervention.trainable_count == intervention.theta.numel() * 2
    h = torch.randn(2, 3, 16)
    assert torch.equal(intervention(h), h)


def test_counts_match_the_paper() -> None:
    """Table 1's totals on the seven linear layers of each block of LLaMA-7B, through the same shapes."""
    widths = 32 * [4096] * 5 + 32 * [11008] * 2
    for variant, total in (("road_1", 1_359_872), ("road_2", 2_719_744), ("road_4", 5_439_488)):
        shapes = [roadint.rotation.parameter_shape(variant, width // 2) for width in widths]
        assert sum(2 * torch.Size(shape).numel() for shape in shapes) == total


@pytest.mark.parametrize(
    ("arguments", "subspaces", "message"),
    [
        ({"subspaces": HALVES}, [[2]], "subspace index 2 is outside the partition: expected 0 to 1"),
        ({"subspaces": HALVES}, ["c"], "unknown subspace 'c'"),
        ({"subspaces": HALVES}, ["a", "b"], "2 entries in subspaces for 1 rows"),
        ({"subspace": "[0, 4)"}, [[4, 5]], r"dims 4 and 5 are outside the subspace \[0, 4\)"),
        ({}, [[1, 2]], "cuts the block"),
    ],
)
def test_bad_subspaces_at_the_call_are_named(arguments: dict[str, Any], subspaces: Any, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        RoadIntervention(embed_dim=8, **arguments)(torch.ones(1, 1, 8), subspaces=subspaces)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(RoadError, match="only one of them"):
        RoadIntervention(subspace="[0, 4)", subspaces=HALVES)
    with pytest.raises(RoadError, match="no argument 'varient'.*did you mean 'variant'"):
        RoadIntervention(varient="road_2")
    with pytest.raises(RoadError, match="layer -1 is no index"):
        RoadIntervention(layer=-1)
    with pytest.raises(RoadError, match="does not know its width yet"):
        RoadIntervention(layer=1).rotation()
    with pytest.raises(RoadError, match="hidden states of width 6 for an intervention of width 8"):
        RoadIntervention(embed_dim=8)(torch.ones(1, 1, 6))
    zero = RoadIntervention(embed_dim=8)
    with torch.no_grad():
        zero.alpha[0] = 0.0
    with pytest.raises(RoadError, match="scale α of zero has no inverse"):
        zero(torch.ones(1, 1, 8), subspaces=["-road"])


def test_import_is_silent_and_light() -> None:
    script = (
        "import sys, roadint; assert not {'torch', 'transformers', 'pyvene'} & set(sys.modules), 'heavy import'; "
        "roadint.RoadIntervention; assert 'pyvene' in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert result.stderr == ""
