"""PEFT's RoAd checkpoints in and out, with PEFT itself as the oracle."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.interop.peft import export, load
from tests.conftest import build
from tests.linear.test_edit import IDS, VARIANTS, encoder, randomised, with_adapters


def theirs_trained(model: PreTrainedModel, folder: Path, **config: Any) -> torch.Tensor:
    """The logits of a PEFT RoAd with random values, saved in `folder`."""
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.RoadConfig(**config)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "road_theta" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.5)
            elif "road_alpha" in name:
                parameter.uniform_(0.7, 1.3)
    theirs.save_pretrained(folder)
    return theirs(input_ids=IDS).logits


@pytest.mark.parametrize("group", [2, 8, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_every_variant_and_group(variant: Any, group: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    expected = theirs_trained(model, tmp_path / "in", variant=variant, group_size=group, target_modules=["q_proj", "up_proj"])
    road = RoadModel(model)
    adapter = load(road, tmp_path / "in", "math")
    found = road(input_ids=IDS, compose="math").logits
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    # And back: the same numbers, bit for bit, and PEFT's own logits of them.
    export(road, tmp_path / "out")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out").eval()
    assert torch.equal(again(input_ids=IDS).logits, expected)
    assert adapter.groups == (group,) * len(adapter.layout.paths)


@pytest.mark.parametrize("variant", VARIANTS)
def test_writes_what_peft_reads(variant: Any, tmp_path: Path) -> None:
    """A subspace and all linear layers, on a model with biases; the inference engine's logits are PEFT's."""
    model = build("qwen3")
    road = with_adapters(model, "a", variant=variant, subspace="[0, d/2)")
    size = export(road, tmp_path)
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    torch.testing.assert_close(road(input_ids=IDS, compose="a").logits, theirs(input_ids=IDS).logits, rtol=1e-6, atol=1e-5)


def test_modules_to_save_are_heads(tmp_path: Path) -> None:
    bert = encoder()
    config = {"task_type": "SEQ_CLS", "variant": "road_1", "group_size": 2, "target_modules": ["query", "dense"]}
    expected = theirs_trained(bert, tmp_path / "in", **config)
    road = RoadModel(bert)
    adapter = load(road, tmp_path / "in", "glue")
    assert adapter.head_paths == ("classifier",)
    found = road(input_ids=IDS, compose=["glue", None, "glue", None]).logits
    torch.testing.assert_close(found[::2], expected[::2], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found[1::2], bert(input_ids=IDS).logits[1::2], rtol=1e-6, atol=1e-6)
    export(road, tmp_path / "out")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(bert), tmp_path / "out").eval()
    assert torch.equal(again(input_ids=IDS).logits, expected)


def test_refuses_what_peft_has_no_form_for(tmp_path: Path) -> None:
    model = build("llama")
    road = RoadModel(model, RoadIntervention(layer=1, subspaces={"german": "[0, d/2)"}))
    randomised(road.add_adapter("lora", lora_rank=2, targets="q_proj"))
    randomised(road.add_adapter("halves", pairing="half", targets=["q_proj", "k_proj"]))
    randomised(road.add_adapter("embedded", targets="embed_tokens"))
    for name, message in {
        "german": "no adapter 'german'",
        "lora": "LoRA beside",
        "halves": "pairs dims at distances",
        "embedded": "embed_tokens is a Embedding",
        None: "no adapter None",
    }.items():
        with pytest.raises(RoadError, match=message):
            export(road, tmp_path / "out", name)
    gpt2 = with_adapters(build("gpt2"), "a")
    with pytest.raises(RoadError, match="is a Conv1D"):
        export(gpt2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_what_is_damaged_or_something_else(tmp_path: Path) -> None:
    model = build("llama")
    road = RoadModel(model)
    theirs_trained(model, tmp_path / "in", group_size=2, target_modules=["q_proj"])
    config = tmp_path / "in" / "adapter_config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps({**whole, "peft_type": "LORA"}))
    with pytest.raises(RoadError, match="PEFT LORA checkpoint: expected peft_type ROAD"):
        load(road, tmp_path / "in")
    config.write_text(json.dumps(whole))
    tensors = tmp_path / "in" / "adapter_model.safetensors"
    payload = tensors.read_bytes()
    tensors.write_bytes(payload[:-8])
    with pytest.raises(RoadError, match="damaged"):
        load(road, tmp_path / "in")
    tensors.write_bytes(payload)
    with pytest.raises(RoadError, match="no linear layer model.layers"):
        load(RoadModel(build("gpt2")), tmp_path / "in")
    with pytest.raises(RoadError, match="neither a folder nor"):
        load(road, tmp_path / "nothing here")
    assert not road.adapters
