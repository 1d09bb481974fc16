"""Adapters on linear layers in a RoadModel: against dense matrices, PEFT and rows that run alone."""

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.interop.peft import as_peft
from tests.helpers import (
    IDS,
    VARIANTS,
    WIDTH,
    build,
    by_hand,
    dense,
    encoder,
    randomised,
    with_adapters,
)


@pytest.mark.parametrize("pairing", ["adjacent", "half", 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_dense_matrices(model: PreTrainedModel, variant: Any, pairing: Any) -> None:
    """On every architecture, Conv1D among them; a strength, and None in the same batch."""
    road = with_adapters(model, "math", variant=variant, pairing=pairing)
    found = road(input_ids=IDS, compose=["math", None, "0.5*math", "math"]).logits
    for row, strength in enumerate([1.0, 0.0, 0.5, 1.0]):
        expected = by_hand(
            model, dense(road.adapters["math"], strength), input_ids=IDS[row : row + 1]
        ).logits[0]
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found[row], expected, rtol=0, atol=2e-6 * scale)
    torch.testing.assert_close(found[1:2], model(input_ids=IDS[1:2]).logits, rtol=0, atol=1e-5)


def test_all_linear_is_the_backbones_and_counts_are_the_papers(model: PreTrainedModel) -> None:
    adapter = RoadModel(model).add_adapter()
    heads = model.get_output_embeddings()
    linear = [
        each
        for each in model.modules()
        if type(each).__name__ in ("Linear", "Conv1D") and each is not heads
    ]
    assert len(adapter.layout.paths) == len(linear)
    assert adapter.trainable_count == sum(adapter.layout.widths)
    assert (
        RoadModel(model).add_adapter(variant="road_4").trainable_count
        == 4 * adapter.trainable_count
    )


def test_rows_with_adapters_of_their_own(model: PreTrainedModel) -> None:
    """Other variants, pairings, targets and compositions in one batch, as each row alone; in any order."""
    road = with_adapters(model, "a", "b")
    randomised(road.add_adapter("half", pairing="half"), 5)
    randomised(road.add_adapter("four", variant="road_4"), 6)
    randomised(road.add_adapter("few", variant="road_2", layers=[0, 2]), 7)
    composed = ["a", "0.5*a - b", "half", "four", "few", None, "a + b + half"]
    composed[-1] = "a + b"
    ids = torch.randint(3, 100, (len(composed), 6))
    together = road(input_ids=ids, compose=composed).logits
    backwards = road(input_ids=ids.flip(0), compose=composed[::-1]).logits.flip(0)
    with torch.no_grad():
        again = road(input_ids=ids, compose=composed).logits
    for row, composition in enumerate(composed):
        alone = road(input_ids=ids[row : row + 1], compose=composition).logits[0]
        scale = float(alone.detach().abs().max())
        for found in (together, backwards, again):
            torch.testing.assert_close(found[row], alone, rtol=0, atol=2e-6 * scale)


def test_generation_in_a_mixed_batch(model: PreTrainedModel) -> None:
    """With and without a cache, with beams and returned sequences: as each row alone."""
    road = with_adapters(model, "a", "b", variant="road_2")
    composed = ["a", None, "b", "0.3*b"]
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tokens = road.generate(input_ids=IDS, compose=composed, **settings)
    assert torch.equal(
        tokens, road.generate(input_ids=IDS, compose=composed, use_cache=False, **settings)
    )
    beams = road.generate(
        input_ids=IDS, compose=composed, num_beams=3, num_return_sequences=2, **settings
    )
    for row, composition in enumerate(composed):
        alone = {"input_ids": IDS[row : row + 1], "compose": composition, **settings}
        assert torch.equal(tokens[row : row + 1], road.generate(**alone))
        assert torch.equal(
            beams[2 * row : 2 * row + 2],
            road.generate(**alone, num_beams=3, num_return_sequences=2),
        )
    assert torch.equal(tokens[1:2], model.generate(input_ids=IDS[1:2], **settings))


def test_adapters_and_interventions_compose(llama: PreTrainedModel) -> None:
    from tests.helpers import trained

    road = trained(
        llama,
        RoadIntervention(
            layer=1, position="last(2)", subspaces={"german": "[0, d/2)", "english": "[d/2, d)"}
        ),
    )
    randomised(road.add_adapter("math"))
    found = road(input_ids=IDS, compose=["german + math", "math", "0.5*english", None]).logits
    handles = []
    expected = []
    for row, composition in enumerate(["german", None, "0.5*english", None]):
        matrices = dense(road.adapters["math"]) if row < 2 else {}
        handles = [
            llama.get_submodule(path).register_forward_hook(lambda m, a, output, r=r: output @ r.T)
            for path, r in matrices.items()
        ]
        expected.append(road(input_ids=IDS[row : row + 1], compose=composition).logits[0])
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=2e-5)
    assert road.names == ["german", "english", "math"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_dense_matrices(variant: Any) -> None:
    model = build("llama").requires_grad_(False)
    road = with_adapters(model, "a", "b", variant=variant)
    road(input_ids=IDS, compose=["a", "b", "a", None]).logits.square().mean().backward()
    found = {
        name: (each.theta.grad.clone(), each.alpha.grad.clone())
        for name, each in road.adapters.items()
    }
    for each in road.adapters.values():
        each.zero_grad()
    rows = [("a", 0), ("b", 1), ("a", 2), (None, 3)]
    for name, row in rows:
        if name is not None:
            logits = road(input_ids=IDS[row : row + 1], compose=name).logits
            (logits.square().sum() / (4 * logits[0].numel())).backward()
    for name, each in road.adapters.items():
        torch.testing.assert_close(found[name][0], each.theta.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[name][1], each.alpha.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("group", [2, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_backward_are_pefts(variant: Any, group: int) -> None:
    model = build("llama")
    road = with_adapters(
        model, "a", variant=variant, pairing=group, targets=["q_proj", "v_proj", "down_proj"]
    )
    expected = road(input_ids=IDS, compose="a").logits
    expected.square().mean().backward()
    adapter = road.adapters["a"]
    theirs = peft.get_peft_model(
        build("llama"),
        peft.RoadConfig(
            variant=variant, group_size=group, target_modules=["q_proj", "v_proj", "down_proj"]
        ),
    )
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in theirs.named_modules()
        if hasattr(module, "road_theta")
    }
    assert list(layers) == list(adapter.layout.paths)
    for path, layer in layers.items():
        for own, parameter in zip(
            adapter.of(path), (layer.road_theta, layer.road_alpha), strict=True
        ):
            parameter["default"].data.copy_(as_peft(own.detach(), variant, group))
    output = theirs(input_ids=IDS).logits
    torch.testing.assert_close(expected, output, rtol=1e-6, atol=1e-5)
    output.square().mean().backward()
    gradients = dict(zip(("theta", "alpha"), (adapter.theta.grad, adapter.alpha.grad), strict=True))
    for name, gradient in gradients.items():
        for path, own in zip(
            adapter.layout.paths, torch.split(gradient, adapter.layout.blocks), strict=True
        ):
            their = getattr(layers[path], f"road_{name}")["default"].grad
            torch.testing.assert_close(as_peft(own, variant, group), their, rtol=1e-4, atol=1e-6)


def test_lora_beside() -> None:
    model = build("llama").requires_grad_(False)
    road = with_adapters(
        model, "a", "b", targets=["q_proj", "down_proj"], lora_rank=3, lora_alpha=6
    )
    composed = ["a", None, "0.5*b", "a"]
    found = road(input_ids=IDS, compose=composed).logits
    for row, (name, strength) in enumerate([("a", 1.0), ("a", 0.0), ("b", 0.5), ("a", 1.0)]):
        adapter = road.adapters[name]
        matrices, lora = (
            dense(adapter, strength),
            dict(zip(adapter.layout.paths, adapter.lora(), strict=True)),
        )

        def act(
            module: nn.Module,
            args: Any,
            output: Tensor,
            path: str,
            matrices: Any = matrices,
            lora: Any = lora,
            s: float = strength,
        ) -> Tensor:
            a, b = lora[path]
            return output @ matrices[path].T + s * (args[0] @ a.T) @ b.T

        from functools import partial

        handles = [
            model.get_submodule(path).register_forward_hook(partial(act, path=path))
            for path in matrices
        ]
        expected = model(input_ids=IDS[row : row + 1]).logits[0]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=2e-5)
    found.square().mean().backward()
    assert all(bool((each.lora_b.grad != 0).any()) for each in road.adapters.values())


def test_encoders_and_heads_of_their_own() -> None:
    """A head trains with its adapter, acts in its rows alone, and the model's own stays as it is."""
    model = encoder().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    road = RoadModel(model)
    for seed, name in enumerate(("rte", "sst")):
        adapter = randomised(road.add_adapter(name, targets="fc1", heads="classifier"), seed)
        torch.nn.init.normal_(adapter.heads[0].weight)
    assert [
        path.rpartition(".")[0].rpartition(".")[2] for path in road.adapters["rte"].layout.paths
    ] == ["intermediate"] * 3
    mask = torch.ones_like(IDS)
    mask[0, 4:] = 0
    labels = torch.tensor([0, 1, 2, 0])
    composed = ["rte", "sst", None, "rte"]
    output = road(input_ids=IDS, attention_mask=mask, labels=labels, compose=composed)
    for row, name in enumerate(composed):
        alone = road(
            input_ids=IDS[row : row + 1], attention_mask=mask[row : row + 1], compose=name
        ).logits[0]
        torch.testing.assert_close(output.logits[row], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.logits[2], model(input_ids=IDS).logits[2])
    output.loss.backward()
    for each in road.adapters.values():
        assert bool((each.heads[0].weight.grad != 0).any())
        assert bool((each.theta.grad != 0).any())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert road.adapters["rte"].trainable_count == 3 * 48 + 3 * WIDTH + 3


def test_a_companions_head_gets_no_gradient() -> None:
    """It acts in a row whose other adapter learns, and stays as it is."""
    model = encoder().requires_grad_(False)
    road = RoadModel(model)
    road.add_adapter("turns", targets="fc1")
    road.add_adapter("reads", targets="fc1", heads="classifier")
    output = road(
        input_ids=IDS, labels=torch.tensor([0, 1, 2, 0]), compose="turns + reads", learning="turns"
    )
    output.loss.backward()
    turns, reads = road.adapters.values()
    assert bool((turns.theta.grad != 0).any())
    assert all(each.grad is None or not bool(each.grad.any()) for each in reads.parameters())


def test_embeddings_turn(llama: PreTrainedModel) -> None:
    road = with_adapters(llama, "a", targets=["embed_tokens"])
    found = road(input_ids=IDS, compose=["a", None, "a", "a"]).logits
    expected = by_hand(llama, dense(road.adapters["a"]), input_ids=IDS).logits
    torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=0, atol=2e-5)
    with pytest.raises(
        RoadError, match="embed_tokens is an embedding, beside which no LoRA is possible"
    ):
        road.add_adapter("b", targets=["embed_tokens"], lora_rank=2)


def test_dtypes() -> None:
    model = build("gemma3").bfloat16()
    road = with_adapters(model, "a", "b", lora_rank=2)
    road.to(torch.bfloat16)
    assert {each.dtype for each in road.adapters["a"].parameters()} == {torch.float32}
    assert road(input_ids=IDS, compose=["a", "b", None, "a + b"]).logits.dtype == torch.bfloat16


def test_the_model_is_left_clean(llama: PreTrainedModel) -> None:
    road = with_adapters(llama, "a")
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    with pytest.raises(Exception, match="index out of range"):
        road(input_ids=IDS + 1000, compose="a")
    road(input_ids=IDS, compose="a")
    assert all(
        not module._forward_hooks and not module._forward_pre_hooks for module in llama.modules()
    )
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"targets": ["q_prj"]},
            r"targets names 'q_prj', which no module is called.*did you mean 'q_proj'",
        ),
        ({"targets": ["q_proj"], "exclude": "q_proj"}, "select no module of LlamaForCausalLM"),
        ({"targets": "["}, r"targets='\[' is no regular expression"),
        ({"layers": [3]}, r"layer 3 is outside the model: expected 0 to 2"),
        ({"variant": "road_3"}, "unknown variant 'road_3'"),
        ({"pairing": 10}, "pairing 10 does not fit width 32"),
        ({"name": "all"}, "subspace name 'all' is reserved"),
        ({"name": "a"}, "name 'a' is taken"),
        ({"heads": "scor"}, "heads names 'scor', which is no module of the model"),
        ({"lora_rank": -1}, "lora_rank=-1: expected a count"),
        ({"subspace": "[0, 3)"}, "boundary 3 in subspace"),
    ],
)
def test_bad_arguments_are_named(
    llama: PreTrainedModel, arguments: dict[str, Any], message: str
) -> None:
    road = with_adapters(llama, "a")
    with pytest.raises(RoadError, match=message):
        road.add_adapter(**{"name": "b", **arguments})
    assert road.names == ["a"]


def test_what_does_not_commute_is_refused(llama: PreTrainedModel) -> None:
    road = with_adapters(llama, "a", "b", variant="road_2")
    randomised(road.add_adapter("c", pairing="half"), 3)
    randomised(road.add_adapter("first", variant="road_4", subspace="[0, d/2)"), 4)
    randomised(road.add_adapter("second", variant="road_4", subspace="[d/2, d)"), 5)
    with pytest.raises(
        RoadError, match=r"'a \+ b' sums a and b, but road_2 and road_2 share blocks of .*q_proj"
    ):
        road(input_ids=IDS, compose=["a", "a + b", None, None])
    with pytest.raises(RoadError, match="they pair other dims"):
        road(input_ids=IDS, compose="a + c")
    found = road(input_ids=IDS, compose="first + second").logits
    matrices = [dense(road.adapters[name]) for name in ("first", "second")]
    half = {}
    for path, r in matrices[0].items():
        half[path] = torch.eye(len(r))
        middle = len(r) // 2
        half[path][:middle, :middle] = r[:middle, :middle]
        half[path][middle:, middle:] = matrices[1][path][middle:, middle:]
    torch.testing.assert_close(found, by_hand(llama, half, input_ids=IDS).logits, rtol=0, atol=2e-5)


def test_many_adapters_and_few_slots(llama: PreTrainedModel) -> None:
    """Adding, replacing, removing and evicting change no other's answer; a changed adapter is never served from a slot."""
    road = RoadModel(llama, capacity=4)
    for number in range(20):
        randomised(road.add_adapter(f"a{number}", targets=["q_proj", "up_proj"]), number)
    fresh = {}
    with torch.no_grad():
        for number in range(20):
            alone = with_adapters(llama, "x", targets=["q_proj", "up_proj"])
            randomised(alone.adapters["x"], number)
            fresh[number] = alone(input_ids=IDS[:1], compose="x").logits[0]
        for start in (0, 5, 16, 0, 3):
            found = road(
                input_ids=IDS[:1].expand(4, -1), compose=[f"a{start + row}" for row in range(4)]
            ).logits
            for row in range(4):
                torch.testing.assert_close(found[row], fresh[start + row], rtol=0, atol=2e-5)
        (table,) = road.adapters.tables.values()
        assert len(table) == 4
        with pytest.raises(RoadError, match="5 different compositions in one batch, room for 4"):
            road(input_ids=IDS[:1].expand(5, -1), compose=[f"a{row}" for row in range(5)])
        road.adapters["a3"].theta.add_(1.0)
        changed = road(input_ids=IDS[:1], compose="a3").logits[0]
        assert not torch.allclose(changed, fresh[3], atol=1e-3)
        road.remove_adapter("a3")
        randomised(road.add_adapter("a3", targets=["q_proj", "up_proj"]), 7)
        torch.testing.assert_close(
            road(input_ids=IDS[:1], compose="a3").logits[0], fresh[7], rtol=0, atol=2e-5
        )
    with pytest.raises(RoadError, match="no adapter 'a99'"):
        road.remove_adapter("a99")


def test_one_copy_of_each_output_is_kept_for_the_gradient(llama: PreTrainedModel) -> None:
    """Beyond what the bare model keeps: for each target its output, at most once."""
    llama.requires_grad_(False)
    llama.get_input_embeddings().requires_grad_(True)  # so that the bare model keeps something too
    road = with_adapters(llama, "a", "b", variant="road_2")

    def kept(run: Any) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = run().logits.sum()
        total = sum(seen.values())
        del output
        return total

    ids = torch.randint(3, 100, (4, 64))
    outputs = sum(road.adapters["a"].layout.widths) * ids.numel() * 4
    vectors = sum(each.theta.numel() for each in road.adapters.values()) * 4 * 24
    assert (
        kept(lambda: road(input_ids=ids, compose=["a", "b", "a", "b"]))
        - kept(lambda: llama(input_ids=ids))
        <= outputs + vectors
    )


def test_an_adapter_acts_by_the_name_that_it_has_now(llama: PreTrainedModel) -> None:
    road = with_adapters(llama, "a", "b")
    with torch.no_grad():
        expected = road(IDS, compose="a").logits
        road.adapters["a"].name = "c"
        assert road.names == ["c", "b"]
        assert torch.equal(road(IDS, compose="c").logits, expected)
        with pytest.raises(RoadError, match="unknown subspace 'a'"):
            road(IDS, compose="a")
