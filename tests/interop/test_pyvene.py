"""What pyvene checks of its own interventions, checked of roadint's, with pyvene's as the oracle.

Swapping both rows of all blocks is pyvene's VanillaIntervention; rows of a dense R are its RotatedSpaceIntervention.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import pyvene as pv
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from roadint import RoadError, RoadInterchange, RoadIntervention, RoadModel, pyvene_config
from roadint.interop.pyvene import load, register_model
from tests.helpers import LAYERS, WIDTH, build
from tests.vision import gemma3

STREAMS = [
    "block_output",
    "block_input",
    "mlp_activation",
    "mlp_output",
    "mlp_input",
    "attention_value_output",
]
STREAMS += ["attention_output", "attention_input", "query_output", "key_output", "value_output"]
HEADS = ["head_attention_value_output", "head_query_output", "head_key_output", "head_value_output"]


def tokens(rows: int = 2, columns: int = 6, seed: int = 0) -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(
            3, 100, (rows, columns), generator=torch.Generator().manual_seed(seed)
        )
    }


def logits(
    model: PreTrainedModel, representations: list[dict[str, Any]], *args: Any, **kwargs: Any
) -> Tensor:
    register_model(model)
    config = pv.IntervenableConfig(representations, model_type=type(model))
    _, output = pv.IntervenableModel(config, model)(*args, **kwargs)
    return output.logits


def turned(**arguments: Any) -> RoadInterchange:
    torch.manual_seed(3)
    made = RoadInterchange(**{"embed_dim": WIDTH, **arguments})
    with torch.no_grad():
        made.theta.normal_()
    return made


@pytest.mark.parametrize("stream", STREAMS)
def test_gather_and_scatter_at_every_stream_of_gpt2(stream: str) -> None:
    """Other positions in each example and in the source, as pyvene's own swap; first and second dims of all blocks in two steps."""
    model = build("gpt2")
    here, there = [[0, 2], [1, 4]], [[3, 5], [2, 0]]
    site = {"layer": 1, "component": stream, "max_number_of_units": 2}
    width = 4 * WIDTH if stream == "mlp_activation" else WIDTH
    halves = [
        {**site, "intervention": RoadInterchange(embed_dim=width, rows=rows)}
        for rows in ("first", "second")
    ]
    swap = {**site, "intervention_type": pv.VanillaIntervention}
    expected = logits(
        model, [swap], tokens(), [tokens(seed=1)], {"sources->base": ([here], [there])}
    )
    found = logits(
        model, halves, tokens(), [tokens(seed=1)] * 2, {"sources->base": ([here] * 2, [there] * 2)}
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, model(**tokens()).logits, atol=1e-3)


@pytest.mark.parametrize("stream", HEADS)
def test_gather_and_scatter_of_single_heads(stream: str) -> None:
    model = build("gpt2")
    site = {"layer": 1, "component": stream, "unit": "h.pos"}
    where = {"sources->base": ([[[[1], [1]], [[3], [5]]]], [[[[0], [2]], [[4], [4]]]])}
    head = RoadInterchange(embed_dim=WIDTH // 4, rows="both")
    expected = logits(
        model,
        [{**site, "intervention_type": pv.VanillaIntervention}],
        tokens(),
        [tokens(seed=1)],
        where,
    )
    found = logits(model, [{**site, "intervention": head}], tokens(), [tokens(seed=1)], where)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, model(**tokens()).logits, atol=1e-3)


@pytest.mark.parametrize("stages", [1, 5])
def test_equals_rotated_space_with_the_same_rows(stages: int) -> None:
    model = build("llama")
    ours = turned(stages=stages, rows="explicit", subspace_partition=[[0, 12], [12, 32]])
    dense = torch.eye(WIDTH)
    for stage in ours.rows(torch.ones(1, WIDTH)).stages:
        dense = stage(dense.T).T
    theirs = pv.RotatedSpaceIntervention(embed_dim=WIDTH, subspace_partition=[[0, 12], [12, 32]])
    theirs.rotate_layer.weight = dense.detach().T
    at = {"sources->base": ([[[5]] * 2], [[[5]] * 2])}
    for part in (0, 1):
        arguments = (tokens(), [tokens(seed=1)], at)
        expected, found = (
            logits(
                model, [{"layer": 1, "intervention": each}], *arguments, subspaces=[[[part]] * 2]
            )
            for each in (theirs, ours)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_partition_is_its_explicit_indices(model: PreTrainedModel) -> None:
    register_model(model)
    at = {"sources->base": ([[[2]] * 2], [[[2]] * 2])}
    pairs = [
        (
            turned(subspace_partition=[[0, 6], [6, 32]]),
            turned(rows="explicit", subspace=f"[0, {WIDTH})"),
        ),
        (
            RoadIntervention(embed_dim=WIDTH, subspace_partition=[[0, 6], [6, 32]]),
            RoadIntervention(embed_dim=WIDTH),
        ),
    ]
    for partition, explicit in pairs:
        for each in (partition, explicit):
            torch.manual_seed(4)
            torch.nn.init.normal_(each.theta)
        found, expected = (
            logits(
                model,
                [{"layer": 1, "intervention": each}],
                tokens(),
                [tokens(seed=1)],
                at,
                subspaces=[[rows] * 2],
            )
            for each, rows in ((partition, [0]), (explicit, list(range(6))))
        )
        assert torch.equal(found, expected)


def test_locations_may_be_one_number_and_sources_may_be_skipped(llama: PreTrainedModel) -> None:
    three = [{"layer": 1, "intervention": turned()} for _ in range(3)]
    base, source, at = tokens(1), tokens(1, seed=1), [[4]]
    results = []
    for place in range(3):
        given = [source if each == place else None for each in range(3)]
        where = [at if each == place else None for each in range(3)]
        results.append(logits(llama, three, base, given, {"sources->base": (where, where)}))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])
    assert torch.equal(logits(llama, three[:1], base, [source], {"sources->base": 4}), results[0])


def test_activations_as_sources(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Given at the call, or with the site (and saved with it), instead of an input; one for all rows and places."""
    states, ours = torch.randn(WIDTH), turned(layer=1)

    def put(module: Any, args: Any, output: Tensor) -> Tensor:
        hidden = output.clone()
        hidden[:, 3] = ours(output[:, 3], states.expand(2, WIDTH))
        return hidden

    handle = llama.model.layers[1].register_forward_hook(put)
    expected = llama(**tokens()).logits
    handle.remove()
    at = {"sources->base": (None, [[[3]] * 2])}
    found = logits(
        llama,
        [{"layer": 1, "intervention": ours}],
        tokens(),
        None,
        at,
        source_representations=states,
    )
    torch.testing.assert_close(found, expected)

    site = {
        "layer": 1,
        "component": "block_output",
        "intervention_type": RoadInterchange,
        "source_representation": states,
    }
    constant = pv.IntervenableModel(pv.IntervenableConfig([site], model_type=type(llama)), llama)
    next(iter(constant.interventions.values())).theta.data.copy_(ours.theta)
    torch.testing.assert_close(constant(tokens(), None, at)[1].logits, expected)
    constant.save(str(tmp_path / "theirs"))
    loaded = load(tmp_path / "theirs", llama)
    torch.testing.assert_close(loaded(tokens(), None, at)[1].logits, expected)

    road = RoadModel(llama, turned(layer=1, position="at(3)", source_representation=states))
    torch.testing.assert_close(road(**tokens()).logits, expected)
    road.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(
        RoadModel.from_pretrained(llama, tmp_path / "ours")(**tokens()).logits, expected
    )


def test_collecting_after_an_interchange(llama: PreTrainedModel) -> None:
    """What lies at the same site, and above it, is what the interchange has put there."""
    ours = turned(layer=0)
    register_model(llama)
    collect = {"component": "block_output", "intervention_type": pv.CollectIntervention}
    config = pv.IntervenableConfig(
        [{"layer": 0, "intervention": ours}, {"layer": 0, **collect}, {"layer": 2, **collect}],
        model_type=type(llama),
    )
    at = [[3]] * 2
    (_, (same, above)), _ = pv.IntervenableModel(config, llama)(
        tokens(), [tokens(seed=1), None, None], {"sources->base": ([at, None, None], [at, at, at])}
    )
    states = {}
    for name, each in {"base": tokens(), "source": tokens(seed=1)}.items():
        states[name] = llama(**each, output_hidden_states=True).hidden_states[1][:, 3]
    torch.testing.assert_close(same.reshape(2, WIDTH), ours(states["base"], states["source"]))
    assert above.reshape(2, WIDTH).shape == (2, WIDTH)
    assert not torch.allclose(
        above.reshape(2, WIDTH), llama(**tokens(), output_hidden_states=True).hidden_states[3][:, 3]
    )


@pytest.mark.parametrize("kind", [RoadInterchange, RoadIntervention])
def test_gradients_reach_only_the_parameters(kind: Any, model: PreTrainedModel) -> None:
    intervention = kind(layer=1, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"})
    intervenable = pv.IntervenableModel(pyvene_config(model, intervention), model)
    intervenable.disable_model_gradients()
    at = [[4]] * 2
    sources, where = (
        ([tokens(seed=1)], (at, at)) if kind is RoadInterchange else (None, (None, [at]))
    )
    where = ([at], [at]) if kind is RoadInterchange else where
    _, output = intervenable(tokens(), sources, {"sources->base": where}, subspaces=[["a", "a"]])
    output.logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    own, other = intervention.theta.grad.reshape(2, -1)
    assert bool((own != 0).any())
    assert bool((other == 0).all())
    assert len(find(intervenable)) == len([*intervention.parameters()])


def find(intervenable: Any) -> list[Tensor]:
    return list(intervenable.get_trainable_parameters())


def test_layers_of_every_model_type_are_registered_once(model: PreTrainedModel) -> None:
    register_model(model)
    before = pv.type_to_module_mapping[type(model)]
    register_model(model)
    assert pv.type_to_module_mapping[type(model)] is before
    assert len(model(**tokens(), output_hidden_states=True).hidden_states) == LAYERS + 1


def test_components_of_some_layers_or_none() -> None:
    """A model whose first layer has no attention of that name is registered all the same; Bloom's adds the residual stream."""
    sizes = {"vocab_size": 128, "hidden_size": WIDTH, "num_hidden_layers": 4, "layer_types": None}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}  # fmt: skip
    torch.manual_seed(0)
    qwen = Qwen3NextForCausalLM(Qwen3NextConfig(**sizes, **heads, **experts, head_dim=8)).eval()
    bloom = BloomForCausalLM(
        BloomConfig(vocab_size=128, hidden_size=32, n_layer=4, n_head=4)
    ).eval()
    for model in (qwen, bloom):
        edit = started()
        expected = RoadModel(model, copy.deepcopy(edit))(**tokens(), compose="all").logits
        intervenable = pv.IntervenableModel(edit, model)
        where = {"base": 5}  # the last of six
        _, output = intervenable(tokens(), unit_locations=where)
        torch.testing.assert_close(output.logits, expected)
    kind = {"layer": 3, "component": "attention_output", "intervention_type": RoadIntervention}
    with pytest.raises(RoadError, match="Bloom.*adds the residual stream"):
        pv.IntervenableModel(pv.IntervenableConfig([kind]), bloom)
    assert pv.IntervenableModel(pv.IntervenableConfig([kind]), qwen).interventions


def test_the_width_inside_a_multimodal_configuration() -> None:
    model = gemma3()
    kind = {"layer": 1, "component": "block_output", "intervention_type": RoadIntervention}
    (made,) = pv.IntervenableModel(pv.IntervenableConfig([kind]), model).interventions.values()
    assert made.embed_dim == WIDTH


def test_wrappers_of_several_architectures() -> None:
    for name in ("llama", "gpt2"):
        model = get_peft_model(build(name), LoraConfig(target_modules="all-linear"))
        _, output = pv.IntervenableModel(started(), model)(tokens(), unit_locations={"base": 5})
        assert output.logits.shape[-1] == 128


def test_a_call_is_where_it_says_whatever_was_before(llama: PreTrainedModel) -> None:
    """pyvene itself stays with one location for all rows once a call had one."""
    where = {"sources->base": (None, [[[1, 2], [3, 4]]])}
    fresh = pv.IntervenableModel(started(), llama)(tokens(), unit_locations=where)[1].logits
    used = pv.IntervenableModel(started(), llama)
    used(tokens(), unit_locations={"base": 4})
    torch.testing.assert_close(used(tokens(), unit_locations=where)[1].logits, fresh)


def started() -> RoadIntervention:
    torch.manual_seed(4)
    edit = RoadIntervention(layer=1, embed_dim=WIDTH)
    with torch.no_grad():
        edit.theta.normal_()
    return edit
