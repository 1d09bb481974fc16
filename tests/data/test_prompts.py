"""From instruction to tokens: the last prompt position is the same in training and at inference."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from roadint.data.collate import Collator, check_fits, tokenize
from roadint.data.prompts import (
    batch_prompts,
    check_template,
    pad_id,
    prompt_ids,
    prompt_text,
    render,
)
from roadint.errors import RoadError
from tests.helpers import build

CHAT = "{% for m in messages %}<bos>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)


@pytest.mark.parametrize("template", ["plain", "line", "alpaca"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(instruction=texts, output=texts)
def test_training_and_inference_share_the_prompt(
    tokenizer: Any, template: Any, instruction: str, output: str
) -> None:
    row = {"instruction": instruction, "output": output}
    (example,) = tokenize([row], tokenizer, "a", template=template, max_length=512)
    inference = batch_prompts(tokenizer, template, [instruction])
    assert example.prompt == inference["input_ids"][0].tolist()
    assert tokenizer.decode(example.completion) == output


def test_templates(tokenizer: Any) -> None:
    assert render("plain", "Why?", tokenizer) == "Why?"
    assert render("line", "Why?", tokenizer) == "Why?\n"
    assert render("line", "Sum.", tokenizer, "1, 2") == "Sum.\n1, 2\n"
    assert render("alpaca", "Why?", tokenizer).endswith("### Instruction:\nWhy?\n\n### Response:\n")
    tokenizer.chat_template = CHAT
    try:
        assert render("chat", "Why?", tokenizer) == "<bos>Why?\nA:"
    finally:
        tokenizer.chat_template = None
    with pytest.raises(RoadError, match="needs a tokenizer with a chat template.*try 'alpaca'"):
        render("chat", "Why?", tokenizer)
    with pytest.raises(RoadError, match="unknown template 'alpacca'.*did you mean 'alpaca'"):
        check_template("alpacca")


def test_turns_before(tokenizer: Any) -> None:
    """Every turn is a prompt with its answer; a chat template gets the messages."""
    prompt = {"instruction": "And in French?", "history": [["Say hello.", "Hello!"]]}
    before = render("alpaca", "Say hello.", tokenizer) + "Hello!\n\n"
    expected = before + render("alpaca", "And in French?", tokenizer)
    for text, template in ((expected, "alpaca"), ("Say hello.Hello!\n\nAnd in French?", "plain")):
        ids = batch_prompts(tokenizer, template, [prompt])["input_ids"][0]  # type: ignore[arg-type]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert prompt_text(prompt) == "And in French?"
    history = [("Say hello.", "Hello!")]
    messages = [
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And in French?"},
    ]
    listed = "{% for p in m['content'] if p is mapping %}{{ p['text'] }}{% endfor %}{{ '' }}"  # a line break after a block is left out
    parts = CHAT.replace("{{ m['content'] }}", listed)
    try:
        for tokenizer.chat_template in (CHAT, parts):
            text = render("chat", "And in French?", tokenizer, history=history)
            assert text == "<bos>Say hello.\n<bos>Hello!\n<bos>And in French?\nA:"
        tokenizer.chat_template = CHAT
        assert render("chat", "And in French?", tokenizer, history=history) == (
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    finally:
        tokenizer.chat_template = None


@pytest.mark.parametrize(
    "history", ["Hello!", [["a"]], [["a", "b", "c"]], [["a", 5]], ["ab"], {"a": "b"}]
)
def test_turns_that_are_none(tokenizer: Any, history: Any) -> None:
    with pytest.raises(RoadError, match="history"):
        batch_prompts(tokenizer, "plain", [{"instruction": "a", "history": history}])


def test_an_input_has_alpacas_own_form_and_is_cut_first(tokenizer: Any) -> None:
    text = render("alpaca", "Sum.", tokenizer, "1, 2")
    assert "paired with an input" in text
    assert text.endswith("### Instruction:\nSum.\n\n### Input:\n1, 2\n\n### Response:\n")
    assert render("plain", "Sum.", tokenizer, "1, 2") == "Sum.\n1, 2"
    row = {"instruction": "Sum.", "input": "1, 2", "output": "3"}
    for template in ("plain", "alpaca"):
        (example,) = tokenize([row], tokenizer, "a", template=template, max_length=512)  # type: ignore[arg-type]
        assert tokenizer.decode(example.prompt, skip_special_tokens=True) == render(
            template, "Sum.", tokenizer, "1, 2"
        )  # type: ignore[arg-type]
    whole = len(prompt_ids(tokenizer, "alpaca", "Sum.", input_text="1"))
    for more, expected in ((4, "12345"), (0, "1")):
        ids = prompt_ids(tokenizer, "alpaca", "Sum.", whole + more, "12345678")
        assert tokenizer.decode(ids, skip_special_tokens=True) == render(
            "alpaca", "Sum.", tokenizer, expected
        )
    ids = prompt_ids(tokenizer, "alpaca", "Sum.", whole - 1, "12345678")
    assert tokenizer.decode(ids, skip_special_tokens=True) == render("alpaca", "Sum.", tokenizer)
    without = len(prompt_ids(tokenizer, "alpaca", "Sum."))
    ids = prompt_ids(tokenizer, "alpaca", "Sum.", without - 1, "12345678")
    assert tokenizer.decode(ids, skip_special_tokens=True) == render("alpaca", "Sum", tokenizer)


@pytest.mark.parametrize("text", ["half \ud800 a letter", 5, None, ["a"], b"a"])
def test_what_is_no_text_is_told(tokenizer: Any, text: Any) -> None:
    with pytest.raises(RoadError, match="half a letter|expected text"):
        batch_prompts(tokenizer, "alpaca", [text])


def test_a_tokenizer_without_an_end_can_not_end_completions(tokenizer: Any) -> None:
    rows = [{"instruction": "a", "output": "b"}]
    ending, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        with pytest.raises(
            RoadError, match="no end-of-sequence token to end the completions of 'german'.*eos="
        ):
            tokenize(rows, tokenizer, "german", template="plain", max_length=64, eos=True)
        (example,) = tokenize(rows, tokenizer, "german", template="plain", max_length=64)
        assert tokenizer.decode(example.completion) == "b"
    finally:
        tokenizer.eos_token = ending


def test_what_a_model_can_not_read_is_told_before_it_runs(tokenizer: Any) -> None:
    (long,) = tokenize(
        [{"instruction": "a" * 250, "output": "b" * 9}],
        tokenizer,
        "a",
        template="plain",
        max_length=512,
    )
    with pytest.raises(
        RoadError, match="a row has 259 tokens, the model 256 positions: expected max_length=256"
    ):
        check_fits([long], build("gpt2"))
    check_fits([long], build("llama"))  # which computes its positions
    (fits,) = tokenize(
        [{"instruction": "a" * 250, "output": "b" * 9}],
        tokenizer,
        "a",
        template="plain",
        max_length=257,
    )
    check_fits([fits], build("gpt2"))
    small = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    with pytest.raises(RoadError, match="id .* outside the model's 16 embeddings"):
        check_fits([long], small)
    with pytest.raises(RoadError, match="padding 128 is outside the model's 128 embeddings"):
        check_fits([long], build("llama"), 128)
    with pytest.raises(
        RoadError, match="a completion of 9 tokens leaves no room for a prompt in max_length=8"
    ):
        tokenize(
            [{"instruction": "a", "output": "b" * 9}],
            tokenizer,
            "a",
            template="plain",
            max_length=8,
            max_completion=20,
        )


def test_a_tokenizer_that_ends_texts_does_not_end_prompts(tokenizer: Any) -> None:
    class Ending:
        eos_token_id = 2
        pad_token_id = None

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            return {"input_ids": [*ids, 2] if add_special_tokens else ids}

    ending = Ending()
    assert prompt_ids(ending, "plain", "ab") == tokenizer("ab")["input_ids"]
    (example,) = tokenize(
        [{"instruction": "ab", "output": "cd"}], ending, "a", template="plain", max_length=64
    )
    assert len(example.completion) == 2
    for eos in (False, True):  # one that the row has itself stays, and is not doubled
        for either in (ending, tokenizer):
            (own,) = tokenize(
                [{"instruction": "ab", "output": "cd<eos>"}], either, "a", template="plain", max_length=64, eos=eos,
            )  # fmt: skip
            assert own.completion == [*example.completion, 2]
    assert pad_id(ending) == 2


def test_long_prompts_lose_the_end_of_their_instruction(tokenizer: Any) -> None:
    whole = len(prompt_ids(tokenizer, "alpaca", ""))
    ids = prompt_ids(tokenizer, "alpaca", "x" * 100, max_length=whole + 10)
    assert tokenizer.decode(ids, skip_special_tokens=True) == render("alpaca", "x" * 10, tokenizer)
    with pytest.raises(RoadError, match="leaves no room for the instruction"):
        prompt_ids(tokenizer, "alpaca", "x" * 100, max_length=whole - 1)


def test_completions_are_cut_and_end_as_told(tokenizer: Any) -> None:
    rows = [{"instruction": "a", "output": "bcd"}]

    def completion(**settings: Any) -> list[int]:
        return tokenize(rows, tokenizer, "a", template="plain", max_length=64, **settings)[
            0
        ].completion

    letters = tokenizer("bcd", add_special_tokens=False)["input_ids"]
    assert completion() == letters
    assert completion(eos=True) == [*letters, 2]
    assert completion(eos=True, max_completion=2) == letters[:2]


def test_a_batch_says_which_token_predicts_which(tokenizer: Any) -> None:
    rows = [{"instruction": "ab", "output": "c"}, {"instruction": "a", "output": "bcd"}]
    examples = tokenize(rows, tokenizer, "x", template="plain", max_length=64)
    batch = Collator(tokenizer)(examples)
    assert batch["attention_mask"].tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]  # the last token predicts nothing
    assert batch["prompt_length"].tolist() == [3, 2]
    assert batch["places"].tolist() == [[0, 1, 1, 1], [2, 1, 2, 3]]
    assert batch["labels"].tolist() == [
        token for example in examples for token in example.completion
    ]
    assert batch["compose"] == ["x", "x"]


def test_prompts_without_tokens_are_named(tokenizer: Any) -> None:
    class Bare:
        pad_token_id = eos_token_id = None

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(RoadError, match="prompt '' has no tokens"):
        batch_prompts(Bare(), "plain", [""])
