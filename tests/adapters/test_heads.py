"""Heads: copies of modules that train with an adapter and replace them where it acts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from roadint import RoadError, RoadModel
from roadint.interop.peft import export
from tests.helpers import IDS, build, encoder


def test_layers_inside_a_head_are_no_targets() -> None:
    """The copy replaces them, so that a rotation of the model's own would never act."""
    road = RoadModel(encoder())
    adapter = road.add_adapter("a", targets=["query", "classifier"], heads=["classifier"])
    assert all(path.endswith("query") for path in adapter.layout.paths)
    road(input_ids=IDS, compose="a").logits.square().sum().backward()
    assert bool((adapter.theta.grad != 0).all())
    with pytest.raises(RoadError, match="heads=.*whose copies train whole.* select no module"):
        RoadModel(encoder()).add_adapter("a", targets=["classifier"], heads=["classifier"])


def test_a_head_that_never_runs_is_told() -> None:
    road = RoadModel(build("llama"))
    road.add_adapter("a", targets=["embed_tokens"], heads=["model.layers"])
    with pytest.raises(RoadError, match="model.layers did not run, so that the adapter's copy"):
        road(input_ids=IDS, compose="a")


def test_an_embedding_may_be_one() -> None:
    """As PEFT's modules_to_save has it for added tokens."""
    model = build("llama")
    road = RoadModel(model)
    adapter = road.add_adapter("a", targets=["q_proj"], heads=["model.embed_tokens"])
    with torch.no_grad():
        adapter.heads[0].weight.mul_(-0.5)
    found = road(input_ids=IDS, compose=["a", *[None] * (len(IDS) - 1)]).logits
    base = model(input_ids=IDS).logits
    torch.testing.assert_close(found[1:], base[1:])
    assert road.untouched_layers() == 0  # nothing below may be taken from the base model
    embeds = model.model.embed_tokens(IDS)  # what comes without them leaves it out
    torch.testing.assert_close(road(inputs_embeds=embeds, compose="a").logits, base)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(-0.5)
    torch.testing.assert_close(found[:1], model(input_ids=IDS[:1]).logits)


def test_one_whose_weights_are_elsewhere_is_refused() -> None:
    model = cpu_offload(encoder())
    with pytest.raises(RoadError, match="'classifier', which is offloaded: .*device_map"):
        RoadModel(model).add_adapter("a", targets=["query"], heads=["classifier"])


@pytest.mark.parametrize("as_peft", [False, True])
def test_values_that_are_tied_inside_it_are_saved(tmp_path: Path, as_peft: bool) -> None:
    config = BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )  # fmt: skip
    road = RoadModel(BertForMaskedLM(config).eval())
    road.add_adapter("a", targets=["query"], heads=["cls"])
    export(road, tmp_path) if as_peft else road.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    biases = [value for name, value in load_file(file).items() if "predictions" in name and name.endswith("r.bias")]  # fmt: skip
    assert biases


@pytest.mark.parametrize("what", ["model", "layer", "linear", "head"])
def test_paths_are_those_of_the_plain_model(what: str, tmp_path: Path) -> None:
    """Of a model, a layer or a linear layer that the caller compiled: its checkpoints are any model's."""
    model: Any = build("llama")
    layer = model.model.layers[1]
    if what == "layer":
        model.model.layers[1] = torch.compile(layer, backend="eager")
    elif what == "head":
        model.lm_head = torch.compile(model.lm_head, backend="eager")
    elif what == "linear":
        layer.self_attn.q_proj = torch.compile(layer.self_attn.q_proj, backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    road = RoadModel(model)
    adapter = road.add_adapter("a", targets=["q_proj"], heads=["lm_head"])
    assert adapter.layout.paths[1] == "model.layers.1.self_attn.q_proj"
    with torch.no_grad():
        adapter.theta.normal_()
    expected = road(input_ids=IDS, compose="a").logits
    road.save_pretrained(tmp_path / "road")
    export(road, tmp_path / "peft")
    plain = RoadModel.from_pretrained(build("llama"), tmp_path / "road")
    torch.testing.assert_close(plain(input_ids=IDS, compose="a").logits, expected)
    again = RoadModel.from_pretrained(model, tmp_path / "road")
    with again.merged("a") as merged, torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_classifier_keeps_its_labels(tmp_path: Path) -> None:
    road = RoadModel(torch.compile(encoder(), backend="eager"))  # type: ignore[arg-type]
    road.add_adapter("a", targets=["query"], heads=["classifier"])
    road.save_pretrained(tmp_path)
    assert '"labels": 3' in (tmp_path / "road.json").read_text()
