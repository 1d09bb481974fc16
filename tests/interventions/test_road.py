"""RoadIntervention in pyvene: as an instance, as a type, per-example subspaces, training; the same numbers as RoadModel."""

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import roadint
from roadint import RoadError, RoadIntervention
from roadint.interventions.loreft import LoreftIntervention
from roadint.interventions.pyvene.patches import pyvene as pv
from roadint.interventions.steering import SteeringIntervention
from tests.helpers import WIDTH, build, trained

HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}


def run(
    pv_model: Any, ids: torch.Tensor, positions: list[list[int]], subspaces: Any = None
) -> torch.Tensor:
    _, output = pv_model(
        {"input_ids": ids},
        unit_locations={"sources->base": (None, [positions])},
        subspaces=subspaces,
    )
    return output.logits


def test_equals_road_model_with_a_subspace_a_row(model: PreTrainedModel) -> None:
    road = trained(model, RoadIntervention(layer=1, subspaces=HALVES, position="last(2)"))
    ids = torch.randint(3, 100, (4, 6), generator=torch.Generator().manual_seed(0))
    expected = road(input_ids=ids, compose=["a", "b", "a + b", None]).logits
    pv_model = pv.IntervenableModel(roadint.pyvene_config(model, road.interventions[0]), model)
    locations = [[4, 5]] * 4
    for subspaces in (
        [["a", "b", "a + b", "none"]],
        [[[0], [1], [0, 1], []]],
        [[["a"], ["b"], ["a", "b"], None]],
    ):
        torch.testing.assert_close(
            run(pv_model, ids, locations, subspaces), expected, rtol=0, atol=1e-6
        )
    torch.testing.assert_close(
        run(pv_model, ids, locations), road(input_ids=ids, compose="all").logits, rtol=0, atol=1e-6
    )


def test_rows_do_not_mix_in_a_batch() -> None:
    """pyvene's own helper gives both examples the union of their subspaces."""
    intervention = RoadIntervention(embed_dim=8)
    with torch.no_grad():
        intervention.theta.fill_(1.0)
    base = torch.ones(2, 3, 8)
    out = intervention(base, subspaces=[[0, 1], [4, 5]])
    changed = (out != base).all(dim=1)
    assert changed.tolist() == [
        [True, True, *[False] * 6],
        [False] * 4 + [True, True, False, False],
    ]
    assert torch.equal(intervention(base[:, 0], subspaces=[[0, 1], [4, 5]]), out[:, 0])


def test_as_intervention_type(llama: PreTrainedModel) -> None:
    config = pv.IntervenableConfig(
        [
            {
                "layer": 1,
                "component": "block_output",
                "max_number_of_units": 2,
                "subspace_partition": [[0, 8], [8, 32]],
            }
        ],
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
    torch.testing.assert_close(
        run(pv_model, ids, [[4, 5]] * 2, [[[0], [1]]]), expected, rtol=0, atol=1e-6
    )


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
    assert torch.equal(tokens, road.generate(input_ids=ids, compose=["a", "b"], **settings))


def test_trains_in_pyvene(llama: PreTrainedModel) -> None:
    pv_model = pv.IntervenableModel(
        roadint.pyvene_config(llama, RoadIntervention(layer=1, subspaces=HALVES)), llama
    )
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


@pytest.mark.parametrize(
    ("variant", "shape"), [("road_1", (8,)), ("road_2", (8, 2)), ("road_4", (8, 2, 2))]
)
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
        shapes = [
            roadint.rotation.rotation.parameter_shape(variant, width // 2) for width in widths
        ]
        assert sum(2 * torch.Size(shape).numel() for shape in shapes) == total


@pytest.mark.parametrize(
    ("arguments", "subspaces", "message"),
    [
        (
            {"subspaces": HALVES},
            [[2]],
            "subspace index 2 is outside the partition: expected 0 to 1",
        ),
        ({"subspaces": HALVES}, ["c"], "unknown subspace 'c'"),
        ({"subspaces": HALVES}, ["a", "b"], "2 entries in subspaces for 1 rows"),
        ({"subspace": "[0, 4)"}, [[4, 5]], r"dims 4 and 5 are outside the subspace \[0, 4\)"),
        ({}, [[1, 2]], "cuts the block"),
    ],
)
def test_bad_subspaces_at_the_call_are_named(
    arguments: dict[str, Any], subspaces: Any, message: str
) -> None:
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
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == ""
    assert result.stderr == ""


def odd(alpha: float, **arguments: Any) -> RoadIntervention:
    """One whose block 3, in b, has this scale."""
    intervention = RoadIntervention(embed_dim=8, subspaces=HALVES, **arguments)
    with torch.no_grad():
        intervention.alpha[3] = alpha
    return intervention


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize(
    ("alpha", "strength", "message"),
    [
        (
            2.0,
            "300*b",
            "a scale α of 2.0 becomes inf at strength 300, in block 3 of 'b' at layer 0",
        ),
        (2.0, "20*b", r"becomes 1.04858e\+06 at strength 20"),
        (-2.0, "20*b", r"a scale α of 2.0 becomes"),
        (1e-4, "-2*b", r"becomes 1e\+08 at strength -2"),
        (0.0, "a - b", "a scale α of zero has no inverse at strength -1, in block 3 of 'b'"),
        (math.nan, "-1*b", "becomes nan at strength -1"),
    ],
)
def test_strengths_at_which_a_scale_is_too_large_are_refused(
    variant: Any, alpha: float, strength: str, message: str
) -> None:
    intervention = odd(alpha, variant=variant)
    h = torch.randn(1, 8)
    with pytest.raises(RoadError, match=message):
        intervention(h, subspaces=[strength])
    before = {name: value.clone() for name, value in intervention.state_dict().items()}
    with pytest.raises(RoadError, match="at strength"):
        intervention.rescale({"b": 1000.0 if abs(alpha) > 1 else -1000.0})
    assert all(
        torch.equal(value, before[name])
        for name, value in intervention.state_dict().items()
        if alpha == alpha
    )
    if alpha == alpha:
        assert (
            intervention(h, subspaces=["1000*a + 0.5*b"]).isfinite().all()
        )  # only what acts matters


def test_a_refused_strength_leaves_the_model_as_it_is(llama: PreTrainedModel) -> None:
    road = trained(llama)
    ids = torch.randint(3, 100, (2, 6))
    before = llama(ids).logits
    for compose in ("300*a", [None, "-300*b"], "1e308*a + 1e308*a"):
        with pytest.raises(RoadError, match="strength"):
            road(input_ids=ids, compose=compose)
        with pytest.raises(RoadError, match="strength"):
            road.generate(input_ids=ids, compose=compose, max_new_tokens=2)
    assert torch.equal(llama(ids).logits, before)
    assert road(input_ids=ids, compose=["3*a", "-2*b"]).logits.isfinite().all()


@pytest.mark.parametrize(
    "kind", [RoadIntervention, LoreftIntervention, SteeringIntervention, roadint.RoadInterchange]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_do_not_act(
    kind: Any, value: float, llama: PreTrainedModel
) -> None:
    intervention = kind(layer=1, subspaces={"a": "[0, 4)", "b": "[4, 8)"})
    road = roadint.RoadModel(llama, intervention).eval()
    with torch.no_grad():
        next(intervention.parameters()).view(-1)[0] = value
    ids = torch.randint(3, 100, (2, 6))
    sources = [torch.zeros(2, WIDTH)] if intervention.takes_source else None
    with pytest.raises(RoadError, match="values of the intervention at layer 1 are not finite"):
        road(input_ids=ids, compose=["a", None], sources=sources)
    assert torch.equal(road(input_ids=ids, compose=None).logits, llama(ids).logits)
    if kind is RoadIntervention:
        road.train()
        assert (
            road(input_ids=ids, compose="a").logits.isnan().any()
        )  # a training step does not wait to look


def test_added_edits_that_overflow_are_refused() -> None:
    steering = SteeringIntervention(embed_dim=8, rank=2)
    with torch.no_grad():
        steering.vectors[0] = 1e37
    assert steering(torch.zeros(1, 8), subspaces=["road"]).isfinite().all()
    with pytest.raises(
        RoadError, match="strength 1000 at layer 0 makes values that are not finite"
    ):
        steering(torch.zeros(1, 8), subspaces=["1000*road"])


@pytest.mark.parametrize("kind", [RoadIntervention, roadint.RoadInterchange])
def test_principal_axes_are_measured_before_they_act(
    kind: Any, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def made() -> roadint.RoadModel:
        return roadint.RoadModel(
            llama, kind(layer=1, subspaces=HALVES, basis="pca", position="last(2)")
        )

    road = made()
    ids = torch.randint(3, 100, (2, 6))
    sources = [torch.ones(2, WIDTH)] if kind is roadint.RoadInterchange else None
    pv_model = pv.IntervenableModel(roadint.pyvene_config(llama, kind(layer=1, basis="pca")), llama)
    for call in (
        lambda: road(input_ids=ids, compose="a", sources=sources),
        lambda: road.generate(
            input_ids=ids, compose=["a", None], sources=sources, max_new_tokens=1
        ),
        lambda: pv_model({"input_ids": ids}, [{"input_ids": ids}], {"sources->base": 5}),
    ):
        with pytest.raises(
            RoadError, match="basis 'pca' are not measured: expected roadint.train.*fit_basis"
        ):
            call()
    assert torch.equal(road(input_ids=ids, compose=None).logits, llama(ids).logits)
    (states,) = road.collect(tokenizer, ["hello you", "abc", "what is it?"])
    site: Any = road.interventions[0]
    site.fit_basis(states)
    with torch.no_grad():
        site.theta.normal_()
    found = road(input_ids=ids, compose="a", sources=sources).logits
    assert not torch.allclose(found, llama(ids).logits)
    road.save_pretrained(tmp_path / "road")
    again, another = made(), made()
    again.load_state_dict(road.state_dict())
    another.interventions[0].load_state_dict(site.state_dict())
    for other in (
        again,
        another,
        roadint.RoadModel.from_pretrained(llama, tmp_path / "road"),
        roadint.RoadModel(llama, copy.deepcopy(site)),
    ):
        assert torch.equal(other(input_ids=ids, compose="a", sources=sources).logits, found)


def test_only_principal_axes_are_measured() -> None:
    for intervention in (
        RoadIntervention(embed_dim=8),
        RoadIntervention(embed_dim=8, basis="random"),
    ):
        with pytest.raises(
            RoadError, match="no basis to measure: expected an intervention with basis='pca'"
        ):
            intervention.fit_basis(torch.randn(4, 8))
    with pytest.raises(RoadError, match="does not know its width yet"):
        RoadIntervention(basis="pca").fit_basis(torch.randn(4, 8))
