"""Where a model comes to lie: one GPU, parts of it in the CPU's memory, several GPUs, quantised weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from tests.device.helpers import same, turned
from tests.helpers import HALVES, IDS, build

MIXED = ["a", "a + x", None, "0.5*x"]


def edited(model: Any) -> RoadModel:
    road = RoadModel(model, RoadIntervention(layer=1, subspaces=HALVES))
    road.add_adapter("x")
    turned(road.interventions)
    turned(road.adapters)
    return road.eval()


def test_loads_onto_the_gpu(base: str, device: torch.device, monkeypatch: Any) -> None:
    model, _ = roadint.load(base)
    assert {each.device for each in model.state_dict().values()} == {device}
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert roadint.load(base)[0].device == torch.device("cuda:0")


@pytest.mark.parametrize("rest", ["cpu", "disk", 1])
def test_a_model_in_parts(rest: Any, device: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    if rest == 1 and torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    build().save_pretrained(tmp_path / "base")
    places = {
        "model.embed_tokens": 0,
        "model.layers.0": 0,
        "model.layers.1": rest,
        "model.layers.2": rest,
        "model.norm": 0,
        "model.rotary_emb": 0,
        "lm_head": 0,
    }
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=places, offload_folder=str(tmp_path / "offload")
    ).eval()
    ids = IDS.to(device)
    whole, parts = edited(build()), edited(model)
    expected = whole(IDS, compose=MIXED).logits
    with torch.no_grad():
        same(parts(ids, compose=MIXED).logits.cpu(), expected.detach(), 2e-4)
        tokens = parts.generate(ids, compose=MIXED, max_new_tokens=4, do_sample=False)
    assert torch.equal(
        tokens.cpu(), whole.generate(IDS, compose=MIXED, max_new_tokens=4, do_sample=False)
    )
    parts(ids, labels=ids, compose=MIXED).loss.backward()
    whole(IDS, labels=IDS, compose=MIXED).loss.backward()
    for one, other in zip(parts.trained_parameters(), whole.trained_parameters(), strict=True):
        same(one.grad.cpu(), other.grad, 2e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights(bits: int, device: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=128)).save_pretrained(
        tmp_path
    )
    chosen = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=chosen, device_map={"": device.index}
    )
    road = RoadModel(model.requires_grad_(False), RoadIntervention(layer=0, subspaces=HALVES))
    road.add_adapter("x")
    turned(road.interventions)
    turned(road.adapters)
    road.eval()
    ids = IDS.to(device)
    with torch.no_grad():
        mixed = road(ids, compose=["a", "x", None, "a + x"]).logits
        for row, compose in enumerate(["a", "x", None, "a + x"]):
            alone = road(ids, compose=compose).logits[row]
            torch.testing.assert_close(mixed[row].float(), alone.float(), rtol=0.02, atol=0.05)
        assert not torch.allclose(mixed[:2], model(ids).logits[:2], atol=0.01)
    road(ids, labels=ids, compose="x").loss.backward()
    assert bool((road.adapters["x"].theta.grad != 0).any())
    with pytest.raises(RoadError, match="serve it unmerged"):
        road.merge("x")
