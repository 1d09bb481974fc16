"""Adapters on the layers of bitsandbytes, 8 and 4 bits: they run and learn unmerged, and refuse to merge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from roadint import RoadError
from tests.helpers import IDS, by_hand, dense, with_adapters

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize(
    ("settings", "layer"),
    [
        ({"load_in_8bit": True}, "Linear8bitLt"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}, "Linear4bit"),
    ],
)
def test_quantised_weights_run_unmerged_and_refuse_to_merge(
    settings: dict[str, Any], layer: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 128,
    }
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu"
    )
    model.requires_grad_(False)
    assert type(model.get_submodule("model.layers.0.self_attn.q_proj")).__name__ == layer
    road = with_adapters(model, "a", "b")
    composed = ["a", "b", None, "a"]
    with torch.no_grad():  # where bitsandbytes multiplies in another way than beside gradients
        found = road(input_ids=IDS, compose=composed).logits
        for row, name in enumerate(composed):
            own = {} if name is None else dense(road.adapters[name])
            expected = by_hand(model, own, input_ids=IDS).logits[row]
            torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(found[0], model(input_ids=IDS).logits[0], atol=0.01)
    road(input_ids=IDS, labels=IDS, compose="a").loss.backward()
    assert bool((road.adapters["a"].theta.grad != 0).any())
    with pytest.raises(
        RoadError, match=rf"is quantised \({layer}, torch.u?int8\).*serve it unmerged"
    ):
        road.merge("a")
