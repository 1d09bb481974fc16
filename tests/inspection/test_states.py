"""Hidden states of texts, against each text alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from roadint import RoadError
from roadint.inspection.states import hidden_states
from tests.helpers import LAYERS, trained

TEXTS = ["abc", "a", "abcdefgh!!", "ab.", *("x" * n for n in range(1, 40))]


@torch.no_grad()
def alone(model: Any, tokenizer: Any, texts: list[str], index: int, **arguments: Any) -> Tensor:
    """[layers, texts, width], without batches and padding."""
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        outputs = model(input_ids=ids, output_hidden_states=True, **arguments)
        found.append(torch.stack([state[0, index] for state in outputs.hidden_states[1:]]))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("token", ["first", "last"])
def test_an_encoders_states(classifier: str, side: str, token: Any) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier, padding_side=side)
    states = hidden_states(model, tokenizer, TEXTS, token=token, batch_size=8)
    expected = alone(model, tokenizer, TEXTS, 0 if token == "first" else -1)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


def test_pairs_keep_their_types(classifier: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    rows = [{"input_ids": [5, 6, 7], "token_type_ids": types} for types in ([0, 0, 0], [0, 0, 1])]
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    first, second = hidden_states(model, tokenizer, rows, token="first")[-1]
    with torch.no_grad():
        inputs = {name: torch.tensor([value]) for name, value in rows[1].items()}
        outputs = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(second, outputs.hidden_states[-1][0, 0])
    assert not torch.allclose(first, second)


def test_an_edited_models_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Each text's own last token is edited, and read; below the edit, at layer 1, nothing changes."""
    road = trained(model)
    found = {
        compose: hidden_states(road, tokenizer, TEXTS, batch_size=8, compose=compose)
        for compose in ("none", "a")
    }
    for compose, states in found.items():
        expected = alone(road, tokenizer, TEXTS, -1, compose=compose)
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert found["a"].shape[:2] == (LAYERS, len(TEXTS))
    torch.testing.assert_close(found["a"][0], found["none"][0])
    assert not torch.allclose(found["a"][1], found["none"][1], atol=1e-2)
    base = hidden_states(model, tokenizer, TEXTS, batch_size=8)
    torch.testing.assert_close(found["none"], base, atol=1e-5, rtol=1e-5)


def test_refusals(classifier: str, llama: PreTrainedModel, tokenizer: Any) -> None:
    with pytest.raises(RoadError, match="'middle'"):
        hidden_states(llama, tokenizer, ["a"], token="middle")  # type: ignore[arg-type]
    with pytest.raises(RoadError, match="no texts"):
        hidden_states(llama, tokenizer, [])
    with pytest.raises(RoadError, match="no tokens"):
        hidden_states(llama, tokenizer, [{"input_ids": []}])
    encoder = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    with pytest.raises(RoadError, match="positions"):
        hidden_states(encoder, AutoTokenizer.from_pretrained(classifier), ["x" * 5000])
