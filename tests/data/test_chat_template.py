"""Templates of prompts as chat templates: the tokens that training saw."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from roadint import RoadError
from roadint.data.chat_template import chat_template
from roadint.data.prompts import prompt_ids
from tests.helpers import make_tokenizer

INSTRUCTIONS = [
    "How do I learn English?",
    "two\nlines ",
    '{{ 1 + 1 }} {% raw %} "quoted" \\n',
    "Grüße, 世界",
]


def ids_of(tokenizer: Any, template: str, *messages: dict[str, str]) -> list[int]:
    text = tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", ["plain", "line", "alpaca"])
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_one_instruction_has_the_tokens_of_a_prompt(template: Any, instruction: str) -> None:
    """The token that begins a text among them, once."""
    tokenizer = make_tokenizer()
    written = chat_template(template, tokenizer)
    assert written is not None
    ids = ids_of(tokenizer, written, {"role": "user", "content": instruction})
    assert ids == prompt_ids(tokenizer, template, instruction)
    assert ids.count(tokenizer.bos_token_id) == 1


def test_other_messages_stand_as_they_are_before_the_last_frame() -> None:
    tokenizer = make_tokenizer()
    written = chat_template("alpaca", tokenizer)
    assert written is not None
    talk = ids_of(
        tokenizer,
        written,
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    )
    text = tokenizer.decode(talk)
    last = prompt_ids(tokenizer, "alpaca", "three")[1:]
    assert talk[-len(last) :] == last
    assert text.startswith("<bos>Be kind.\n\nBelow is")
    assert "### Instruction:\none\n\n### Response:\ntwo\n\nBelow is" in text


@pytest.mark.parametrize("template", ["plain", "line", "alpaca"])
def test_a_conversation_has_the_tokens_of_a_prompt_with_a_history(template: Any) -> None:
    tokenizer = make_tokenizer()
    written = chat_template(template, tokenizer)
    assert written is not None
    said = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = [{"role": role, "content": text} for role, text in [*said, ("user", "five")]]
    history = [("one", "two"), ("three", "four")]
    expected = prompt_ids(tokenizer, template, "five", history=history)
    assert ids_of(tokenizer, written, *messages) == expected


def test_a_chat_template_is_the_tokenizers_own() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(RoadError, match="needs a tokenizer with a chat template"):
        chat_template("chat", tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert chat_template("chat", tokenizer) is None


def test_none_where_no_text_begins_as_prompts_do() -> None:
    """With a token that a tokenizer puts first but reads in no text."""
    backend = json.loads(make_tokenizer().backend_tokenizer.to_str())
    backend["model"]["vocab"]["[start]"] = len(backend["model"]["vocab"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[start] $A", special_tokens=[("[start]", backend["model"]["vocab"]["[start]"])]
    )
    assert prompt_ids(tokenizer, "plain", "one")[1:] == tokenizer.convert_tokens_to_ids([*"one"])
    assert chat_template("plain", tokenizer) is None
