"""Next tokens and the logit lens, against the model's own output."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from roadint import RoadError
from roadint.inspection.lens import logit_lens, next_tokens
from tests.helpers import LAYERS, trained


def test_next_tokens_are_the_models_own(model: PreTrainedModel, tokenizer: Any) -> None:
    road = trained(model)
    found = next_tokens(road, tokenizer, "abc", ["a", "none", "a + b"], count=4)
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    base = model(input_ids=ids).logits[0, -1].softmax(-1)
    for each in found:
        own = (
            road(input_ids=ids, compose=each.composition)
            .logits[0, -1]
            .detach()
            .double()
            .softmax(-1)
        )
        assert [text for text, _ in each.top] == [
            tokenizer.decode([place]) for place in own.topk(4).indices.tolist()
        ]
        assert each.top[0][1] == pytest.approx(float(own.max()), rel=1e-4)
        expected = float((own * (own.log() - base.double().log())).sum())
        assert each.kl == pytest.approx(expected, abs=1e-4)
        assert max(after - before for _, before, after in each.moved) == pytest.approx(
            float((own - base).max()), abs=1e-5
        )
    assert (found[1].kl, found[1].composition) == (pytest.approx(0, abs=1e-6), "none")


def test_the_lens_ends_in_the_models_own_prediction(model: PreTrainedModel, tokenizer: Any) -> None:
    """And is the same for all compositions below the edit, at layer 1."""
    road = trained(model)
    plain, turned = logit_lens(road, tokenizer, "abc", [None, "a + b"])
    assert len(plain) == len(turned) == LAYERS
    assert plain[0] == pytest.approx(turned[0]) if plain[0][0] == turned[0][0] else False
    assert plain[1:] != turned[1:]
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    for row, composition in ((plain, None), (turned, "a + b")):
        own = road(input_ids=ids, compose=composition).logits[0, -1].detach().softmax(-1)
        assert row[-1][0] == tokenizer.decode([int(own.argmax())])
        assert row[-1][1] == pytest.approx(float(own.max()), rel=1e-3)


def test_a_model_without_a_known_norm_says_so(tokenizer: Any) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(
        BloomConfig(vocab_size=128, hidden_size=32, n_layer=3, n_head=4)
    ).eval()
    model.transformer.ln_f = None
    with pytest.raises(RoadError, match="no final norm"):
        logit_lens(trained(model), tokenizer, "abc", [None])
