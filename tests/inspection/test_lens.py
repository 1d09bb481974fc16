"""Next tokens and the logit lens, against the model's own output."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PreTrainedModel,
)

from roadint import RoadError
from roadint.engines.transformers.scoring import logits_of_states
from roadint.inspection.lens import logit_lens, next_tokens
from tests.helpers import LAYERS, trained


def test_next_tokens_are_the_models_own(model: PreTrainedModel, tokenizer: Any) -> None:
    road = trained(model)
    shown = next_tokens(road, tokenizer, "abc", ["a", "none", "a + b"], count=4)
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    base = model(input_ids=ids).logits[0, -1].detach().softmax(-1)
    for each in shown:
        logits = road(input_ids=ids, compose=each.composition).logits[0, -1]
        after = logits.detach().double().softmax(-1)
        assert [token.text for token in each.top] == [
            tokenizer.decode([index]) for index in after.topk(4).indices.tolist()
        ]
        assert each.top[0].probability == pytest.approx(float(after.max()), rel=1e-4)
        expected = float((after * (after.log() - base.double().log())).sum())
        assert each.kl == pytest.approx(expected, abs=1e-4)
        changes = [token.after - token.before for token in each.moved]
        assert len(changes) == 4
        assert max(changes) == pytest.approx(float((after - base).max()), abs=1e-5)
        assert min(changes) == pytest.approx(float((after - base).min()), abs=1e-5)
    assert (shown[1].kl, shown[1].composition) == (pytest.approx(0, abs=1e-6), "none")


def test_the_lens_ends_in_the_models_own_prediction(model: PreTrainedModel, tokenizer: Any) -> None:
    """And is the same for all compositions below the edit, at layer 1."""
    road = trained(model)
    plain, turned = logit_lens(road, tokenizer, "abc", [None, "a + b"])
    assert len(plain) == len(turned) == LAYERS
    assert plain[0].text == turned[0].text
    assert plain[0].probability == pytest.approx(turned[0].probability)
    assert plain[1:] != turned[1:]
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    for row, composition in ((plain, None), (turned, "a + b")):
        last = road(input_ids=ids, compose=composition).logits[0, -1].detach().softmax(-1)
        assert row[-1].text == tokenizer.decode([int(last.argmax())])
        assert row[-1].probability == pytest.approx(float(last.max()), rel=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(logits_scaling=0.1, tie_word_embeddings=False),
        CohereConfig(logit_scale=20.0),
        Gemma2Config(final_logit_softcapping=0.5, head_dim=8),
    ],
    ids=lambda config: config.model_type,
)
def test_scales_and_soft_caps_count(config: Any, tokenizer: Any) -> None:
    sizes = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    config.update(sizes)
    road = trained(AutoModelForCausalLM.from_config(config).eval())
    (row,) = logit_lens(road, tokenizer, "abc", ["a"])
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    last = road(input_ids=ids, compose="a").logits[0, -1].detach().softmax(-1)
    assert row[-1].probability == pytest.approx(float(last.max()), rel=1e-3)
    at_first = road.model(ids, output_hidden_states=True).hidden_states[1][:, -1]
    plain = logits_of_states(road.model, road.model.model.norm(at_first)).detach().softmax(-1)
    (base,) = logit_lens(road, tokenizer, "abc", [None])
    assert base[0].probability == pytest.approx(float(plain.max()), rel=1e-3)


def test_a_model_without_a_known_norm_says_so(tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(
        BloomConfig(vocab_size=128, hidden_size=32, n_layer=3, n_head=4)
    ).eval()
    model.transformer.ln_f = None
    with pytest.raises(RoadError, match="no final norm"):
        logit_lens(trained(model), tokenizer, "abc", [None])
