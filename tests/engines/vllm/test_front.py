"""What a request may say beside its composition, and what its engine says of its model."""

from types import SimpleNamespace
from typing import Any

import pytest

from roadint import RoadError
from roadint.engines.vllm.front import base_of, check_arguments, prompt_length_of
from roadint.engines.vllm.served import Base


@pytest.mark.parametrize(
    "name", ["Roadint", "roadnt", "road_int", "road-int", "ROADINT", "compose"]
)
def test_names_that_were_meant_for_roadint(name: str) -> None:
    """Else the base model would answer."""
    with pytest.raises(RoadError, match=f"a request has '{name}': expected .'roadint': a compos"):
        check_arguments({"kv_transfer_params": 1, name: "german"})


def test_names_of_others() -> None:
    check_arguments({"roadint": "german", "kv_transfer_params": {}, "session_id": "r", "seed": 1})


def test_the_base_model_of_a_configuration() -> None:
    text = SimpleNamespace(hidden_size=32, num_hidden_layers=3, model_type="llama")
    config: Any = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=text))
    assert base_of(config) == Base(32, 3, "llama")


@pytest.mark.parametrize(
    ("tokens", "embeds"), [([1, 2, 3], None), (None, [[0.0]] * 3), ([1] * 3, [0])]
)
def test_the_length_of_a_prompt(tokens: Any, embeds: Any) -> None:
    request: Any = SimpleNamespace(prompt_token_ids=tokens, prompt_embeds=embeds)
    assert prompt_length_of(request) == 3
