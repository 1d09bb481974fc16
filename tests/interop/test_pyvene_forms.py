"""Every form of pyvene's configuration edits the layer that was said, or is refused; a dense matrix in a hook is the oracle."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from transformers import PreTrainedModel

from roadint import RoadError, RoadInterchange, RoadIntervention, RoadModel
from roadint.interop.pyvene import load
from roadint.interventions.direft import DireftIntervention
from roadint.interventions.loreft import LoreftIntervention
from roadint.interventions.pyvene.patches import pyvene as pv
from roadint.interventions.steering import SteeringIntervention
from tests.helpers import WIDTH, build

HALF = "[0, d/2)"
LAYERS = {"llama": "model.layers", "gpt2": "transformer.h", "gemma3": "model.layers"}
IDS = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(0))
FORMS: dict[str, Callable[[Any, str], Any]] = {
    "as the mission writes it": lambda each, _: [
        {"layer": 2, "component": "block_output", "intervention": each}
    ],
    "without a layer": lambda each, _: [{"component": "block_output", "intervention": each}],
    "alone in a dict": lambda each, _: {"intervention": each},
    "in a list": lambda each, _: [each],
    "in a tuple": lambda each, _: (each,),
    "in a ModuleList": lambda each, _: nn.ModuleList([each]),
    "alone": lambda each, _: each,
    "a RepresentationConfig": lambda each, _: pv.RepresentationConfig(layer=2, intervention=each),
    "pyvene's fields in order": lambda each, _: [[2, "block_output", "pos", 1, None, None, each]],
    "a path": lambda each, layers: [{"component": f"{layers}[2].output", "intervention": each}],
    "a RepresentationConfig with a path": lambda each, layers: [
        pv.RepresentationConfig(component=f"{layers}[2].output", intervention=each)
    ],
}


def run(intervenable: Any, columns: list[int], **arguments: Any) -> Tensor:
    where = {"sources->base": (None, [[columns] * len(IDS)] * len(intervenable.interventions))}
    return intervenable({"input_ids": IDS}, unit_locations=where, **arguments)[1].logits


def hooked(model: PreTrainedModel, path: str, matrix: Tensor, columns: list[int]) -> Tensor:
    def put(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, columns] = hidden[:, columns] @ matrix.T
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.get_submodule(path).register_forward_hook(put)
    logits = model(IDS).logits
    handle.remove()
    return logits


def turn(intervention: RoadIntervention, seed: int = 1) -> Tensor:
    """Large random values; the dense matrix of its whole edit."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        intervention.theta.copy_(torch.randn(intervention.theta.shape, generator=generator))
        intervention.alpha.copy_(torch.rand(intervention.alpha.shape, generator=generator) + 0.5)
    strengths = sum(
        intervention.partition.strengths({name: 1.0}) for name in intervention.partition
    )
    return intervention.rotation(strengths).dense().detach()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", LAYERS)
def test_every_form_edits_the_layer_that_was_said(architecture: str, form: str) -> None:
    model = build(architecture)
    for configured in (True, False):
        intervention = RoadIntervention(layer=2, subspace=HALF)
        optimizer = torch.optim.AdamW(intervention.parameters(), lr=0.1)
        given = FORMS[form](intervention, LAYERS[architecture])
        intervenable = pv.IntervenableModel(
            pv.IntervenableConfig(given) if configured else given, model
        )
        assert intervention.width == WIDTH
        matrix = turn(intervention)
        found = run(intervenable, [4, 5])
        torch.testing.assert_close(
            found, hooked(model, f"{LAYERS[architecture]}.2", matrix, [4, 5]), rtol=0, atol=1e-4
        )
        before = intervention.theta.detach().clone()
        found.square().mean().backward()
        optimizer.step()
        assert not torch.equal(before, intervention.theta)


def test_what_only_the_configuration_says_becomes_the_interventions() -> None:
    model = build()
    intervention = RoadIntervention(subspace=HALF)
    config = pv.IntervenableConfig(
        [{"layer": 1, "component": "mlp_output", "intervention": intervention}]
    )
    intervenable = pv.IntervenableModel(config, model)
    assert (intervention.layer, intervention.component) == (1, "mlp_output")
    matrix = turn(intervention)
    torch.testing.assert_close(
        run(intervenable, [5]), hooked(model, "model.layers.1.mlp", matrix, [5]), rtol=0, atol=1e-4
    )
    road = RoadModel(model, intervention)
    torch.testing.assert_close(
        run(intervenable, [5]), road(input_ids=IDS).logits, rtol=0, atol=1e-5
    )
    path = pv.IntervenableConfig(
        [{"component": "model.layers[2].output", "intervention": RoadIntervention()}]
    )
    assert path.representations[0].intervention.layer == 2


def test_one_without_a_layer_may_act_at_several() -> None:
    model, shared = build(), RoadIntervention(subspace=HALF)
    intervenable = pv.IntervenableModel(
        [{"layer": layer, "intervention": shared} for layer in (0, 2)], model
    )
    matrix = turn(shared)
    both = run(intervenable, [3])

    def edit(module: Any, args: Any, output: Tensor) -> Tensor:
        output[:, 3] = output[:, 3] @ matrix.T
        return output

    handle = model.model.layers[0].register_forward_hook(edit)
    expected = hooked(model, "model.layers.2", matrix, [3])
    handle.remove()
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-4)


def test_mixed_with_pyvenes_own_and_added_later() -> None:
    model = build()
    swap = {"layer": 0, "component": "mlp_output", "intervention_type": pv.VanillaIntervention}
    own = RoadIntervention(layer=2, subspace=HALF)
    config = pv.IntervenableConfig(
        [own, swap, pv.RepresentationConfig(layer=1, intervention_type=RoadIntervention)]
    )
    config.add_intervention(RoadIntervention(layer=1, component="attention_output"))
    assert [(each.layer, each.component) for each in config.representations] == [
        (2, "block_output"),
        (0, "mlp_output"),
        (1, "block_output"),
        (1, "attention_output"),
    ]
    intervenable = pv.IntervenableModel(config, model)
    kinds = [type(each) for each in intervenable.interventions.values()]
    assert kinds == [RoadIntervention, pv.VanillaIntervention, RoadIntervention, RoadIntervention]
    assert all(
        each.bound
        for each in intervenable.interventions.values()
        if isinstance(each, RoadIntervention)
    )
    assert "layer" in repr(config)


def test_pyvenes_own_configurations_are_left_alone() -> None:
    assert pv.IntervenableConfig().representations == [pv.RepresentationConfig()]
    listed = [pv.RepresentationConfig(layer=3), {"layer": 1}, [2, "mlp_output"]]
    assert [each.layer for each in pv.IntervenableConfig(listed).representations] == [3, 1, 2]
    with pytest.raises(ValueError, match="not supported"):
        pv.IntervenableConfig(["layer 3"])
    with pytest.raises(TypeError):
        pv.IntervenableConfig([{"layers": 3}])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda: {"layer": 1, "intervention": RoadIntervention(layer=2)},
            "says layer 1, its RoadIntervention 2",
        ),
        (
            lambda: pv.RepresentationConfig(intervention=RoadIntervention(layer=2)),
            "says layer 0, its RoadIntervention 2",
        ),
        (
            lambda: {
                "component": "mlp_output",
                "intervention": RoadIntervention(component="block_output"),
            },
            "says component 'mlp_output', its RoadIntervention 'block_output'",
        ),
        (
            lambda: {
                "component": "model.layers[1].output",
                "intervention": RoadIntervention(layer=2),
            },
            "is not in layer 2",
        ),
        (
            lambda: {"component": "model.norm.output", "intervention": RoadIntervention(layer=2)},
            "is not in layer 2",
        ),
        (
            lambda: {
                "layer": 0,
                "component": "model.layers[1].output",
                "intervention": RoadIntervention(),
            },
            "is not in layer 0",
        ),
        (lambda: {"layer": -1, "intervention": RoadIntervention()}, "layer -1 is no index"),
        (lambda: {"layer": "2", "intervention": RoadIntervention()}, "layer '2' is no index"),
        (lambda: {"layer": True, "intervention": RoadIntervention()}, "layer True is no index"),
        (lambda: {"layers": 2, "intervention": RoadIntervention()}, "no field 'layers'"),
        (
            lambda: {"intervention": RoadIntervention},
            "'intervention' is the class RoadIntervention",
        ),
        (
            lambda: {"intervention_type": RoadIntervention()},
            "'intervention_type' is a RoadIntervention",
        ),
        (
            lambda: {"intervention": RoadIntervention(), "subspace_partition": [[0, 8], [8, 32]]},
            "subspace_partition is the intervention's own",
        ),
        (
            lambda: {"intervention": LoreftIntervention(rank=8), "low_rank_dimension": 4},
            "low_rank_dimension 4 .* rank 8",
        ),
        (
            lambda: {
                "intervention": RoadIntervention(),
                "source_representation": torch.ones(WIDTH),
            },
            "takes no source",
        ),
        (
            lambda: {"layer": 7, "intervention": RoadIntervention()},
            "has no 'block_output' at layer 7",
        ),
        (lambda: RoadIntervention(layer=7), "has no 'block_output' at layer 7"),
        (
            lambda: {"component": "nonsense", "intervention": RoadIntervention()},
            "has no 'nonsense'",
        ),
        (
            lambda: {"component": "model.layers[9].output", "intervention": RoadIntervention()},
            "has no 'model",
        ),
        (
            lambda: {"layer": 7, "intervention_type": RoadIntervention},
            "has no 'block_output' at layer 7",
        ),
        (lambda: RoadIntervention(layer=1, embed_dim=WIDTH // 2, subspace=HALF), "width"),
    ],
)
def test_contradictions_are_refused(given: Callable[[], Any], message: str) -> None:
    model = build()
    with pytest.raises(RoadError, match=message):
        run(pv.IntervenableModel(pv.IntervenableConfig([given()]), model), [1])


def test_an_object_in_a_types_place_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(RoadError, match="intervention_types has a RoadIntervention"):
        pv.IntervenableModel(
            pv.IntervenableConfig([{"layer": 1}], intervention_types=RoadIntervention(layer=1)),
            llama,
        )


def test_a_source_said_by_the_configuration_is_the_interchanges() -> None:
    model, states = build(), torch.randn(WIDTH)
    own = RoadInterchange(rows="both", subspace=HALF)
    intervenable = pv.IntervenableModel(
        [{"layer": 1, "intervention": own, "source_representation": states}], model
    )
    projected = torch.diag((torch.arange(WIDTH) < WIDTH // 2).float())

    def put(module: Any, args: Any, output: Tensor) -> Tensor:
        output[:, 4] = output[:, 4] + (states - output[:, 4]) @ projected
        return output

    handle = model.model.layers[1].register_forward_hook(put)
    expected = model(IDS).logits
    handle.remove()
    torch.testing.assert_close(run(intervenable, [4]), expected, rtol=0, atol=1e-4)
    with pytest.raises(RoadError, match="expected it said once"):
        pv.IntervenableConfig([{"intervention": own, "source_representation": states + 1}])


KINDS: list[Callable[[], Any]] = [
    lambda: RoadIntervention(layer=1, variant="road_4", subspace=HALF),
    lambda: RoadIntervention(layer=1, basis="hadamard"),
    lambda: RoadInterchange(layer=1, stages=3, learn="mask"),
    lambda: RoadInterchange(layer=1, learn="boundary", subspaces={"a": HALF}),
    lambda: LoreftIntervention(layer=1, rank=4, subspaces={"a": HALF}),
    lambda: DireftIntervention(layer=1, rank=4),
    lambda: SteeringIntervention(layer=1, rank=2),
]


@pytest.mark.parametrize("make", KINDS)
def test_parameters_exist_before_the_width_and_stay_the_same_objects(
    make: Callable[[], Any],
) -> None:
    waiting = make()
    parameters = dict(waiting.named_parameters())
    assert parameters
    assert all(isinstance(each, UninitializedParameter) for each in parameters.values())
    for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        optimizer(waiting.parameters(), lr=0.1)
    frozen = next(iter(parameters))
    parameters[frozen].requires_grad_(False)
    for each in (copy.deepcopy(waiting), pickle.loads(pickle.dumps(waiting))):
        assert each.bind(WIDTH).trainable_count == make().bind(WIDTH).trainable_count
    assert str(waiting).startswith(type(waiting).__name__)
    assert not waiting.bound
    waiting.bfloat16().half().to("cpu")
    with torch.inference_mode():
        waiting.bind(WIDTH)
    bound = dict(waiting.named_parameters())
    assert {name: id(each) for name, each in bound.items()} == {
        name: id(each) for name, each in parameters.items()
    }
    assert all(
        each.dtype == torch.float32 and not isinstance(each, UninitializedParameter)
        for each in bound.values()
    )
    assert [name for name, each in bound.items() if not each.requires_grad] == [frozen]
    told = type(waiting)(**waiting.spec())
    assert {name: each.shape for name, each in told.named_parameters()} == {
        name: each.shape for name, each in bound.items()
    }
    copies = [copy.deepcopy(waiting)]
    if not isinstance(waiting, LoreftIntervention):  # torch pickles no parametrized modules
        copies.append(pickle.loads(pickle.dumps(waiting)))
    for each in copies:
        base, source = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
        assert torch.equal(each(base, source), waiting(base, source))


def test_the_first_call_tells_the_width_where_pyvene_does_not() -> None:
    """Values of grouped heads are narrower than pyvene's table says."""
    model = build()
    intervention = RoadIntervention(layer=1, component="value_output")
    intervenable = pv.IntervenableModel([intervention], model)
    optimizer = torch.optim.Adam(intervenable.get_trainable_parameters(), lr=0.1)
    assert not intervention.bound
    with pytest.raises(RoadError, match="does not know its width yet"):
        intervention.state_dict()
    torch.testing.assert_close(run(intervenable, [4]), model(IDS).logits)
    assert intervention.width == WIDTH // 2
    run(intervenable, [4]).square().mean().backward()
    optimizer.step()
    assert bool((intervention.theta != 0).any())
    found = run(intervenable, [4])
    matrix = intervention.rotation().dense().detach()
    torch.testing.assert_close(
        found, hooked(model, "model.layers.1.self_attn.v_proj", matrix, [4]), rtol=0, atol=1e-4
    )


def test_kinds_run_as_types_with_pyvenes_rank(llama: PreTrainedModel) -> None:
    site = {"layer": 1, "low_rank_dimension": 4, "intervention_type": LoreftIntervention}
    (made,) = pv.IntervenableModel(pv.IntervenableConfig([site]), llama).interventions.values()
    assert made.rank == 4
    with pytest.raises(RoadError, match="expected it said once"):
        LoreftIntervention(rank=8, low_rank_dimension=4)


@pytest.mark.parametrize("make", KINDS)
def test_saved_and_loaded_by_pyvene_and_by_roadint(make: Callable[[], Any], tmp_path: Any) -> None:
    model, intervention = build("gemma3"), make()
    intervenable = pv.IntervenableModel(pv.IntervenableConfig([intervention]), model)
    with torch.no_grad():
        for name, each in intervention.named_parameters():
            if "original" not in name:
                each.add_(0.3 * torch.randn_like(each))
    intervenable.save(str(tmp_path / "saved"))
    base, source = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    for loaded in (
        pv.IntervenableModel.load(str(tmp_path / "saved"), model),
        load(tmp_path / "saved", model),
    ):
        (again,) = loaded.interventions.values()
        assert again.spec() == intervention.spec()
        assert torch.equal(again.eval()(base, source), intervention.eval()(base, source))


def test_integers_mean_the_same_after_a_round_trip(tmp_path: Any) -> None:
    """Of one without named subspaces they count dims, then as before."""
    model, base = build(), torch.randn(1, 2, WIDTH)
    for intervention, chosen in (
        (RoadIntervention(layer=1), [[2, 3]]),
        (RoadIntervention(layer=1, subspaces={"a": HALF}), [[0]]),
    ):
        intervenable = pv.IntervenableModel([intervention], model)
        turn(intervention)
        intervenable.save(str(tmp_path / next(iter(intervention.partition))))
        (again,) = load(tmp_path / next(iter(intervention.partition)), model).interventions.values()
        assert torch.equal(again(base, subspaces=chosen), intervention(base, subspaces=chosen))


def test_measured_axes_come_back(tmp_path: Any) -> None:
    model = build()
    intervention = RoadIntervention(layer=1, basis="pca")
    intervenable = pv.IntervenableModel([intervention], model)
    turn(intervention)
    intervention.frame.fit(torch.randn(100, WIDTH))
    intervenable.save(str(tmp_path / "saved"))
    base = torch.randn(2, WIDTH)
    for loaded in (
        pv.IntervenableModel.load(str(tmp_path / "saved"), model),
        load(tmp_path / "saved", model),
    ):
        (again,) = loaded.interventions.values()
        assert torch.equal(again(base), intervention(base))
