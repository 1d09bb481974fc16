"""Models whose weights accelerate copies from memory or from files for a call: the same numbers, and the weights stay there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from tests.helpers import HALVES, IDS, SHORT, build, randomised, rows, trained, with_adapters

Offload = Callable[[PreTrainedModel], PreTrainedModel]
PARTS = ("embed_tokens", "rotary_emb", "layers.0", "layers.1", "layers.2", "norm")
DEVICE_MAP = {f"model.{part}": "cpu" for part in PARTS} | {
    "model.layers.1": "disk",
    "lm_head": "cpu",
}


@pytest.fixture(params=["memory", "files", "device_map", "from_pretrained"])
def offload(request: Any, tmp_path: Path) -> Offload:
    def load(model: PreTrainedModel) -> PreTrainedModel:
        model.save_pretrained(tmp_path)
        folder = str(tmp_path / "offloaded")
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            tmp_path, device_map=DEVICE_MAP, offload_folder=folder
        )
        return loaded.eval()

    kinds: dict[str, Offload] = {
        "memory": lambda model: cpu_offload(model, execution_device="cpu"),
        "files": lambda model: disk_offload(model, str(tmp_path), execution_device="cpu"),
        "device_map": lambda model: dispatch_model(
            model, DEVICE_MAP, "cpu", offload_dir=str(tmp_path)
        ),
        "from_pretrained": load,
    }
    return kinds[request.param]


def offloaded(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters() if value.device.type == "meta"]


def both(model: PreTrainedModel) -> RoadModel:
    road = trained(model)
    randomised(road.add_adapter("x", lora_rank=2), 4)
    return road


def test_calls(offload: Offload, tokenizer: Any) -> None:
    plain, road = both(build()), both(offload(build()))
    away = offloaded(road.model)
    assert any(name.startswith("model.layers.1.") for name in away)
    with torch.no_grad():
        for compose in ("a", "b + x", ["a", None, "x", "b + 0.5*x"], None):
            torch.testing.assert_close(
                road(input_ids=IDS, compose=compose).logits,
                plain(input_ids=IDS, compose=compose).logits,
            )
    for compose in ("a", "b + x", None):
        assert road.answer(tokenizer, "Why?", compose) == plain.answer(tokenizer, "Why?", compose)
    texts = ["Why?", "What is it?"]
    for found, expected in zip(
        road.collect(tokenizer, texts), plain.collect(tokenizer, texts), strict=True
    ):
        torch.testing.assert_close(found, expected)
    assert offloaded(road.model) == away


def test_gradients(offload: Offload) -> None:
    plain, road = both(build()), both(offload(build()))
    for each in (plain, road):
        each(input_ids=IDS, compose="a + x").logits.log_softmax(-1)[..., 3].sum().backward()
    for found, expected in zip(road.trained_parameters(), plain.trained_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("adapters", [False, True], ids=["hidden states", "adapters"])
def test_training(adapters: bool, offload: Offload, tokenizer: Any) -> None:
    """With prefix reuse; the skipped layers' weights are not copied at every step."""

    def train(model: PreTrainedModel) -> list[torch.Tensor]:
        edits = [] if adapters else [RoadIntervention(layer=1, subspaces=HALVES)]
        road = RoadModel(model, edits)
        if adapters:
            road.add_adapter("a")
        summary = roadint.train(road, tokenizer, {"a": rows("abab")}, **SHORT)
        assert adapters == (summary["prefix_reuse"] is None)
        return [value.detach() for value in road.trained_parameters()]

    model = offload(build())
    away = offloaded(model)
    for found, expected in zip(train(model), train(build()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert offloaded(model) == away


def test_skipped_layers_are_not_copied_at_every_step(tokenizer: Any) -> None:
    model = cpu_offload(build(), execution_device="cpu")
    copied: list[int] = []
    for index, layer in enumerate(model.model.layers):
        hook = layer.mlp.up_proj._hf_hook
        copy = hook.pre_forward
        hook.pre_forward = lambda *args, index=index, copy=copy, **settings: (
            copied.append(index),
            copy(*args, **settings),
        )[1]
    road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES))
    summary = roadint.train(road, tokenizer, {"a": rows("abab")}, **SHORT)
    assert summary["prefix_reuse"]["skipped_layers"] == 2
    assert copied.count(0) < summary["steps"] <= copied.count(2)


def test_weights_in_memory_merge(model: PreTrainedModel) -> None:
    road = with_adapters(cpu_offload(model, execution_device="cpu"), "x", lora_rank=2)
    before = road(input_ids=IDS, compose=None).logits.detach()
    expected = road(input_ids=IDS, compose="x").logits.detach()
    scale = float(expected.abs().max())
    with road.merged("x") as merged:
        torch.testing.assert_close(
            merged(input_ids=IDS).logits, expected, rtol=0, atol=3e-6 * scale
        )
    assert torch.equal(road(input_ids=IDS, compose=None).logits, before)
    road.merge("x")
    torch.testing.assert_close(
        road.model(input_ids=IDS).logits, expected, rtol=0, atol=3e-6 * scale
    )
    road.unmerge()
    torch.testing.assert_close(
        road(input_ids=IDS, compose=None).logits, before, rtol=0, atol=1e-4 * scale
    )


def test_tied_weights_in_memory_refuse_to_merge() -> None:
    """Each module has a parameter of its own then, and both are copied from one place."""
    road = with_adapters(
        cpu_offload(build("gemma3"), execution_device="cpu"), "x", targets=["embed_tokens"]
    )
    with pytest.raises(RoadError, match="embed_tokens shares its weights with lm_head"):
        road.merge("x")


def test_weights_in_files_refuse_to_merge(tmp_path: Path) -> None:
    model = dispatch_model(build(), DEVICE_MAP, "cpu", offload_dir=str(tmp_path))
    road = with_adapters(model, "x")
    before = road(input_ids=IDS, compose=None).logits.detach()
    with pytest.raises(RoadError, match=r"layers\.1\.self_attn\.q_proj is offloaded: its weights"):
        road.merge("x")
    assert torch.equal(road(input_ids=IDS, compose=None).logits, before)
    randomised(road.add_adapter("y", layers=[0, 2]))
    expected = road(input_ids=IDS, compose="y").logits.detach()
    road.merge("y")
    torch.testing.assert_close(
        road.model(input_ids=IDS).logits, expected, rtol=0, atol=3e-6 * float(expected.abs().max())
    )
