"""Adapters in the weights: against the unmerged run, PEFT's merge and the weights before."""

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from roadint import RoadError, RoadIntervention, RoadLinear, RoadModel, Rotation
from roadint.adapters import merging
from roadint.interop.peft import export
from roadint.rotation.kernels import weights as kernel
from tests.helpers import IDS, VARIANTS, build, encoder, randomised, with_adapters


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("pairing", ["adjacent", "half", 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_equals_unmerged(model: PreTrainedModel, variant: Any, pairing: Any) -> None:
    """On every architecture, Conv1D and biases among them; with LoRA; and back."""
    road = with_adapters(model, "a", variant=variant, pairing=pairing, lora_rank=2)
    before = weights(model)
    expected = road(input_ids=IDS, compose="a").logits
    scale = float(expected.detach().abs().max())
    with road.merged("a") as plain:
        torch.testing.assert_close(plain(input_ids=IDS).logits, expected, rtol=0, atol=3e-6 * scale)
        torch.testing.assert_close(road(input_ids=IDS).logits, expected, rtol=0, atol=3e-6 * scale)
    assert same(model, before)
    road.merge("a")
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=3e-6 * scale)
    road.unmerge()
    for name, value in model.named_parameters():
        torch.testing.assert_close(
            value, before[name], rtol=0, atol=2e-5 * float(before[name].abs().max())
        )


def test_weighted_sums_and_interventions_beside() -> None:
    llama = build("llama")
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces={"german": "[0, d/2)"}))
    for seed, name in enumerate("abc"):
        randomised(road.add_adapter(name, layers=None if name != "b" else [0, 2]), seed)
    expected = road(input_ids=IDS, compose="german + a - 0.5*b + 2*c").logits
    with road.merged("a - 0.5*b + 2*c"):
        torch.testing.assert_close(
            road(input_ids=IDS, compose="german").logits, expected, rtol=0, atol=2e-5
        )
        assert road.names == ["german"]
        for call in (
            lambda: road(input_ids=IDS, compose="a"),
            lambda: road.merge("b"),
            lambda: road.remove_adapter("a"),
        ):
            with pytest.raises(RoadError, match="merged.*unmerge"):
                call()
    assert road.names == ["german", "a", "b", "c"]


@pytest.mark.parametrize("group", [2, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merges_as_peft(variant: Any, group: int, tmp_path: Path) -> None:
    """The same weights as PEFT's, which multiplies by a dense matrix."""
    model = build("llama")
    road = with_adapters(
        model, "a", variant=variant, pairing=group, targets=["q_proj", "down_proj"]
    )
    export(road, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).merge_and_unload()
    road.merge("a")
    for (name, own), (_, other) in zip(
        model.named_parameters(), theirs.named_parameters(), strict=True
    ):
        torch.testing.assert_close(
            own, other, rtol=0, atol=1e-6 * max(1, float(other.detach().abs().max())), msg=name
        )


def test_embeddings_and_heads() -> None:
    bert = encoder()
    road = RoadModel(bert)
    adapter = randomised(
        road.add_adapter("glue", targets=["word_embeddings", "query"], heads="classifier")
    )
    with torch.no_grad():
        for parameter in adapter.heads.parameters():
            parameter.normal_()
    before = weights(bert)
    expected = road(input_ids=IDS, compose="glue").logits
    road.merge("glue")
    torch.testing.assert_close(bert(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
    road.unmerge()
    torch.testing.assert_close(bert.classifier.weight, before["classifier.weight"], rtol=0, atol=0)
    tied = build("gemma3")
    road, before = with_adapters(tied, "a", targets=["embed_tokens", "q_proj"]), weights(tied)
    with pytest.raises(RoadError, match=r"embed_tokens shares its weights with lm_head"):
        road.merge("a")
    assert same(tied, before)


@pytest.mark.parametrize("group", [2, 6, 96])
@pytest.mark.parametrize("layer", [nn.Linear(50, 96), Conv1D(96, 50)], ids=["linear", "conv1d"])
def test_large_and_odd_shapes_in_chunks(
    layer: nn.Module, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one chunk, and groups larger than a chunk: as the dense matrix."""
    torch.manual_seed(0)
    road = RoadLinear(layer, variant="road_4", pairing=group)
    randomised(road.road)
    rotation = road.road.rotation()
    dense = Rotation(rotation.u, rotation.v, group).dense().detach()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    monkeypatch.setattr(kernel, "_CHUNK_ON_CPU", 700)
    road.merge()
    expected = dense @ weight if isinstance(layer, nn.Linear) else weight @ dense.T
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.bias.detach(), dense @ bias, rtol=0, atol=1e-5)
    road.unmerge()
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=1e-4)


def test_double_precision_is_kept() -> None:
    torch.manual_seed(0)
    for layer in (nn.Linear(6, 8).double(), Conv1D(8, 6).double()):
        road = RoadLinear(layer, variant="road_4", lora_rank=2)
        randomised(road.road)
        x = torch.randn(3, 6, dtype=torch.float64)
        rotation, ((a, b),) = road.road.rotation(), road.road.lora()
        dense = Rotation(rotation.u, rotation.v).dense().double()
        expected = layer(x) @ dense.T + x @ a.double().T @ b.double().T
        road.merge()
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=2e-8)


@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["old", "new"]
)
def test_computed_weights_are_refused(norm: Any) -> None:
    """A change of what the layer computes from other parameters would vanish in its next call."""
    road = RoadLinear(norm(nn.Linear(6, 8)))
    with pytest.raises(RoadError, match="the weight of base .* is no parameter, but packed or"):
        road.merge()


def test_tells_what_the_dtype_loses() -> None:
    model = build("llama").to(torch.bfloat16)
    road = RoadModel(model)
    adapter = road.add_adapter("a")
    with torch.no_grad():
        adapter.theta.fill_(1e-4)
    with pytest.warns(
        UserWarning,
        match=r"bfloat16 rounds away over 20 % of the change at 21 of 21 targets \(\d+ % at ",
    ):
        report = road.merge("a")
    assert min(report.rounding.values()) > 0.5
    road.unmerge()
    with torch.no_grad():
        adapter.theta.fill_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert max(road.merge("a").rounding.values()) < 0.02
    road.unmerge()
    with torch.no_grad():
        adapter.theta.fill_(1e-4)
    model.float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        road.merge("a")


def test_refusals_change_nothing() -> None:
    model = build("llama")
    road = RoadModel(model, RoadIntervention(layer=1, subspaces={"german": "[0, d/2)"}))
    randomised(road.add_adapter("a", variant="road_2"), 1)
    randomised(road.add_adapter("b", variant="road_2"), 2)
    before = weights(model)
    with pytest.raises(RoadError, match="'german' edits hidden states"):
        road.merge("german + a")
    with pytest.raises(RoadError, match="do not commute"):
        road.merge()
    with pytest.raises(RoadError, match="unknown subspace 'c'"):
        road.merge("c")
    with pytest.raises(RoadError, match="nothing to merge"):
        road.merge(None)
    with pytest.raises(RoadError, match="no adapters are merged"):
        road.unmerge()
    with torch.no_grad():
        road.adapters["a"].alpha[3] = 0
    with pytest.raises(RoadError, match="block 3 is singular"):
        road.merge("a")
    assert same(model, before)
    with road.merged("a"):
        pass
    assert same(model, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_strength_that_leaves_float32_is_refused_before_anything_changes(variant: Any) -> None:
    llama = build("llama")
    road = with_adapters(llama, "a", variant=variant)
    before, values = (
        weights(llama),
        {name: value.clone() for name, value in road.adapters["a"].state_dict().items()},
    )
    message = "a scale α of .* becomes .* at strength 300, in block [0-9]+ of 'a', at model.layers"
    for call in (
        lambda: road.merge("300*a"),
        lambda: road.merge("300*a", keep=True),
        lambda: road.adapters["a"].rescale(300.0),
        lambda: road(input_ids=IDS, compose="300*a"),
        lambda: road.generate(input_ids=IDS, compose="300*a", max_new_tokens=1),
    ):
        with pytest.raises(RoadError, match=message):
            call()
    with pytest.raises(RoadError, match="is too large: expected at most 1,000"):
        road.adapters["a"].rescale(1e6)
    assert same(llama, before)
    assert all(
        torch.equal(value, values[name]) for name, value in road.adapters["a"].state_dict().items()
    )
    assert road(input_ids=IDS, compose="2*a").logits.isfinite().all()


def test_a_checkpoint_whose_adapters_are_merged_stays(tmp_path: Path) -> None:
    """Removed, its rotations would go on in the weights, under no name."""
    llama = build("llama")
    with_adapters(llama, "x").save_pretrained(tmp_path / "b")
    road = RoadModel(llama)
    road.add_checkpoint(tmp_path / "b", "b")
    road.merge("x@b")
    with pytest.raises(RoadError, match="merged into the weights, as 'x@b': unmerge"):
        road.remove_checkpoint("b")
    assert list(road.adapters) == ["x@b"]
    road.unmerge()
    road.remove_checkpoint("b")
    assert road.names == []


def test_adapters_that_are_not_finite_are_refused() -> None:
    llama = build("llama")
    road = with_adapters(llama, "a", "b").eval()
    before = weights(llama)
    with torch.no_grad():
        road.adapters["b"].theta[3] = torch.nan
    for call in (lambda: road(input_ids=IDS, compose="a + b"), lambda: road.merge("a + b")):
        with pytest.raises(RoadError, match="rotations of 'b' are not finite"):
            call()
    assert same(llama, before)
    assert road(input_ids=IDS, compose="a").logits.isfinite().all()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("ends_in", ["rotations", "products", "heads"])
def test_what_ends_a_merge_takes_back_what_was_merged(
    ends_in: str, keep: bool, monkeypatch: Any
) -> None:
    """Exactly from copies, else by inverses; where it ends inside a module without copies, it is told."""
    bert = encoder()
    road = RoadModel(bert)
    adapter = road.add_adapter("a", targets=["query", "key"], lora_rank=2, heads="classifier")
    randomised(adapter)
    before, expected = weights(bert), road(input_ids=IDS, compose="a").logits
    apply, heads, calls = merging._apply, merging._heads, []
    last = 2 if ends_in == "rotations" else len(adapter.layout.paths) + 2

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == last and ends_in != "heads":
            raise torch.OutOfMemoryError("no memory")
        return apply(*args)

    def of_another_shape(*args: Any) -> Any:
        first, (second, _) = heads(*args)
        return first, (second, torch.zeros(7))

    told = RoadError if ends_in != "heads" and not keep else RuntimeError
    with (
        monkeypatch.context() as patch,
        pytest.raises(told, match="no memory|ended inside|size") as failure,
    ):
        patch.setattr(merging, "_apply", full)
        if ends_in == "heads":
            patch.setattr(merging, "_heads", of_another_shape)
        road.merge("a", keep=keep)
    assert ("ended inside bert.encoder.layer.0" in str(failure.value)) == (told is RoadError)
    assert not road.adapters.merged
    for name, value in bert.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0 if keep else 1e-5)
    with road.merged("a"):
        torch.testing.assert_close(bert(input_ids=IDS).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("ends_in", ["_shares", "_warn"])
def test_a_merge_that_is_stopped_at_its_end_is_taken_back(
    ends_in: str, keep: bool, monkeypatch: Any
) -> None:
    """Where the host waits for the device, and where a warning is an error."""
    llama = build("llama").bfloat16()
    road, before = with_adapters(llama, "a", lora_rank=2), weights(llama)

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merging, ends_in, stopped)
        road.merge("a", keep=keep)
    assert not road.adapters.merged
    for name, value in llama.named_parameters():
        torch.testing.assert_close(
            value, before[name], rtol=0 if keep else 0.05, atol=0 if keep else 0.02
        )


@pytest.mark.parametrize("keep", [True, False])
def test_a_backward_pass_on_weights_that_have_changed_since_is_refused(keep: bool) -> None:
    road = with_adapters(build("llama").requires_grad_(False), "a")
    loss = road(input_ids=IDS, compose="a").logits.square().mean()
    road.merge("a", keep=keep)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    road.unmerge()
    road(input_ids=IDS, compose="a").logits.square().mean().backward()


def test_a_head_that_is_tied_is_not_merged(tmp_path: Path) -> None:
    """Its copy has values of its own; in the weights they would be the embeddings' too."""
    model = build("gemma3")
    road = RoadModel(model)
    adapter = road.add_adapter("a", targets=["q_proj"], heads=["lm_head"])
    with torch.no_grad():
        adapter.heads[0].weight.add_(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RoadError, match="lm_head, which .* shares its weight with model.embed_tok"):
        road.merge("a")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
