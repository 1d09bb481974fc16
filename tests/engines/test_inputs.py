"""What the model counts: positions, masks, prompts, places; an edit that changes nothing leaves the model's own numbers."""

import inspect
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    RobertaConfig,
    RobertaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.architecture.properties import cache_name
from tests.helpers import SIZES, own, padded, prompts, scaled, trained

IDS = torch.arange(10, 28).reshape(2, 9)
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def test_an_edit_that_changes_nothing_changes_nothing(model: PreTrainedModel) -> None:
    road = RoadModel(model, RoadIntervention(layer=1))
    road.add_adapter("x")
    right = padded(prompts([5, 9]), "right")
    for inputs in (
        {"input_ids": IDS},
        {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
        right,
    ):
        labelled = {**inputs, "labels": inputs["input_ids"]}
        expected, found = model(**labelled), road(**labelled)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.loss, expected.loss)
        parameter = next(model.parameters())
        one, other = (
            torch.autograd.grad(output.loss, parameter)[0] for output in (expected, found)
        )
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    left = padded(prompts([5, 9]), "left")
    for inputs in ({"input_ids": IDS}, left):
        assert torch.equal(road.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))


def test_models_that_count_otherwise_count_as_they_do() -> None:
    text = {
        **SIZES,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 1, 1]},
    }
    vision = {
        "num_heads": 4,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "depth": 2,
        "hidden_size": 32,
    }
    tokens = {
        "image_token_id": 120,
        "video_token_id": 121,
        "vision_start_token_id": 118,
        "vision_end_token_id": 119,
    }
    torch.manual_seed(0)
    vl = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=text, vision_config={**vision, "embed_dim": 32, "mlp_ratio": 2}, **tokens
        )
    )
    image = torch.tensor([[5, 6, 118, 120, 120, 120, 120, 119, 7, 8, 9]])
    roberta = RobertaForCausalLM(
        RobertaConfig(**{**SIZES, "pad_token_id": 1, "bos_token_id": 0}, is_decoder=True)
    )
    cases: list[tuple[PreTrainedModel, dict[str, Any]]] = [
        (
            vl,
            {
                "input_ids": image,
                "attention_mask": torch.ones_like(image),
                "pixel_values": torch.randn(16, 96),
                "image_grid_thw": torch.tensor([[1, 4, 4]]),
                "mm_token_type_ids": (image == 120).int(),
            },
        ),
        (roberta, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
        (
            roberta,
            {
                "input_ids": IDS.masked_fill(torch.arange(9) < 3, 1),
                "attention_mask": (torch.arange(9) >= 3).long().expand(2, 9),
            },
        ),
    ]
    for model, inputs in cases:
        scaled(model)
        expected = model(**inputs).logits
        found = RoadModel(model, RoadIntervention(layer=1))(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_the_same_whoever_composes_beside_it(
    model: PreTrainedModel, side: str
) -> None:
    road = trained(model)
    rows = prompts([5, 9])
    alone = road(input_ids=rows[0][None], compose=None).logits[0]
    for compose in ([None, None], [None, "a"], None):
        found = own(road(**padded(rows, side), compose=compose).logits[0], rows[0], side)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


KINDS = {
    "MiniMax": lambda: MiniMaxForCausalLM(
        MiniMaxConfig(
            **SIZES,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=2,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            block_size=8,
        )
    ),
    "RWKV": lambda: RwkvForCausalLM(
        RwkvConfig(vocab_size=128, hidden_size=32, num_hidden_layers=3, context_length=64)
    ),
    "Mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=3, state_size=8)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("position", "phase"), [("last(2)", "prompt"), ("all", "generated"), ("first(2)", "both")]
)
def test_caches_that_tell_no_length(kind: str, position: str, phase: Any) -> None:
    torch.manual_seed(0)
    model = scaled(KINDS[kind](), 3)
    road = trained(
        model,
        RoadIntervention(
            layer=1, position=position, phase=phase, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}
        ),
    )
    one = IDS[:1]
    settings = {**GREEDY, "pad_token_id": 0}
    assert torch.equal(
        road.generate(input_ids=one, compose="a", **settings),
        road.generate(input_ids=one, compose="a", use_cache=False, **settings),
    )


def test_masks_and_lengths_that_do_not_fit_are_named(llama: PreTrainedModel) -> None:
    road = trained(llama)
    for mask, message in (
        (torch.ones(2, 7), "attention_mask has 7 columns for 9 tokens a row: expected 9"),
        (torch.ones(2, 12), "attention_mask has 12 columns for 9 tokens a row: expected 9"),
        (torch.ones(2, 1, 9, 9), r"attention_mask of shape \(2, 1, 9, 9\) for 2 rows"),
        ([[1] * 9] * 2, "attention_mask of shape list"),
        (torch.zeros(2, 9), "attention_mask keeps no token of a row"),
    ):
        with pytest.raises(RoadError, match=message):
            road(input_ids=IDS, attention_mask=mask, compose="a")
    with torch.no_grad():
        cache = llama(input_ids=IDS[:, :5], use_cache=True)[cache_name(llama)]
    with pytest.raises(
        RoadError, match="has 4 columns for 4 tokens a row and 5 columns in the cache: expected 9"
    ):
        road(
            input_ids=IDS[:, 5:],
            attention_mask=torch.ones(2, 4),
            **{cache_name(llama): cache},
            compose="a",
        )
    for length, message in (
        ([5, 5], r"prompt_length \[5, 5\]: expected a tensor \[rows\] of integers, for 2 rows"),
        (torch.tensor([5]), "for 2 rows"),
        (torch.tensor([5.0, 5.0]), "of integers"),
        (
            torch.tensor([True, False]),
            r"prompt_length tensor\(\[ True, False\]\): expected a tensor \[rows\] of integers",
        ),
        (
            torch.tensor([5, 10]),
            r"prompt_length \[5, 10\]: expected at most the tokens that the mask keeps, \[9, 9\]",
        ),
    ):
        with pytest.raises(RoadError, match=message):
            road(input_ids=IDS, compose="a", prompt_length=length)
    for scored, message in (
        (
            (torch.tensor([[2], [0]]), torch.tensor([5])),
            "token_nll: rows from 2 to 2: expected 0 to 1",
        ),
        (
            (torch.tensor([[0], [9]]), torch.tensor([5])),
            "token_nll: columns from 9 to 9: expected 0 to 8",
        ),
        (
            (torch.tensor([[0], [1]]), torch.tensor([128])),
            "token_nll: labels from 128 to 128: expected 0 to 127",
        ),
        (
            (torch.tensor([[0], [1]]), torch.tensor([5, 6])),
            r"token_nll: places \(2, 1\) and labels \(2,\)",
        ),
        (
            (torch.zeros(2, 1), torch.tensor([5])),
            "token_nll: places of torch.float32 and labels of torch.int64: expected integers",
        ),
        (
            (torch.tensor([[0], [1]]), torch.tensor([5.0])),
            "token_nll: places of torch.int64 and labels of torch.float32",
        ),
        ([1, 2], "token_nll: expected two tensors"),
    ):
        with pytest.raises(RoadError, match=message):
            road.token_nll(*scored, input_ids=IDS, compose="a")  # type: ignore[arg-type]


def test_ids_that_are_padded_without_a_mask(llama: PreTrainedModel) -> None:
    road = trained(llama)
    ids = padded(prompts([5, 9]), "left")
    for side in ("left", "right"):
        with pytest.raises(
            RoadError, match="input_ids are padded, and no attention_mask says where"
        ):
            road(input_ids=padded(prompts([5, 9]), side)["input_ids"], compose="a")
    expected = road.generate(**ids, compose="a", **GREEDY)
    assert torch.equal(road.generate(input_ids=ids["input_ids"], compose="a", **GREEDY), expected)


def test_generated_tokens_of_a_forward_need_to_be_told(llama: PreTrainedModel) -> None:
    road = trained(
        llama,
        RoadIntervention(layer=1, position="all", phase="generated", subspaces={"a": "[0, d)"}),
    )
    with pytest.raises(
        RoadError, match="edits generated tokens alone, and this call has none: give prompt_length"
    ):
        road(input_ids=IDS, compose="a")
    road(input_ids=IDS, compose="a", prompt_length=torch.tensor([9, 5]))
    road(input_ids=IDS, compose=None)


def test_what_the_caller_says_of_a_generation_counts(
    llama: PreTrainedModel, tokenizer: Any
) -> None:
    """A token is a character."""
    road = trained(llama)
    longest = {"min_new_tokens": 3, "repetition_penalty": 1.0}
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, **longest)
    (answer,) = road.answer(tokenizer, "hello", "a", generation_config=config)
    tokens = tokenizer("hello", return_tensors="pt", return_token_type_ids=False)
    expected = road.generate(**tokens, compose="a", generation_config=config)[
        0, tokens["input_ids"].shape[1] :
    ]
    assert answer == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert len(expected) == 3
    assert len(road.answer(tokenizer, "hello", "a", max_length=8)[0]) <= 2
    (whole,) = road.answer(tokenizer, "hello", "a", max_new_tokens=12)
    middle = whole[4]
    for stop in (
        {"stop_strings": [middle]},
        {"generation_config": GenerationConfig(stop_strings=[middle], max_new_tokens=12)},
    ):
        (stopped,) = road.answer(
            tokenizer,
            "hello",
            "a",
            **stop,
            **({} if "generation_config" in stop else {"max_new_tokens": 12}),
        )
        assert middle in stopped
        assert len(stopped) < len(whole) or whole.endswith(middle)
    for guided in (
        {"guidance_scale": 1.5},
        {"generation_config": GenerationConfig(guidance_scale=1.5, max_new_tokens=3)},
    ):
        with pytest.raises(
            RoadError, match="guidance_scale=1.5 runs the model on other tokens in between"
        ):
            road.answer(tokenizer, "hello", "a", **guided)
    road.answer(tokenizer, "hello", None, guidance_scale=1.5, max_new_tokens=3)


def test_answers_fit_a_model_of_few_positions(tokenizer: Any) -> None:
    """A token is a character, and one begins the text."""
    torch.manual_seed(0)
    few = scaled(
        GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=32, n_layer=3, n_head=4, n_positions=20))
    )
    road = trained(few)
    (answer,) = road.answer(tokenizer, "hello", "a", min_new_tokens=14)
    assert len(answer) <= 14
    for given, message in (
        (
            {"max_new_tokens": 15},
            "a prompt of 6 tokens and max_new_tokens=15 for a model of 20 positions: expected at most 20",
        ),
        ({}, "a prompt of 31 tokens for a model of 20 positions"),
    ):
        with pytest.raises(RoadError, match=message):
            road.answer(tokenizer, "hello" if given else "hello" * 6, "a", **given)


class NamesMasks(LlamaForCausalLM):
    """A model that takes its mask by name alone."""

    def forward(self, input_ids: Any = None, *, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, attention_mask, **kwargs)


def test_arguments_that_a_model_takes_by_name_alone() -> None:
    torch.manual_seed(0)
    road = trained(scaled(NamesMasks(LlamaConfig(**SIZES, num_key_value_heads=2))))
    shown = inspect.signature(road.forward).parameters
    assert list(shown)[:2] == ["input_ids", "attention_mask"]  # what Trainer keeps of a data set
    assert shown["attention_mask"].kind is inspect.Parameter.KEYWORD_ONLY
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
    named = road(input_ids=IDS, attention_mask=mask, compose="a").logits
    assert torch.equal(road(IDS, attention_mask=mask, compose="a").logits, named)
    with pytest.raises(RoadError, match="2 arguments without a name: the model's forward has 1"):
        road(IDS, mask, compose="a")


def test_arguments_that_are_given_twice_are_named(llama: PreTrainedModel) -> None:
    road = trained(llama)
    with pytest.raises(RoadError, match="input_ids is given twice"):
        road(IDS, input_ids=IDS)
    with pytest.raises(RoadError, match="input_ids are given twice"):
        road.generate(IDS, input_ids=IDS[:1], **GREEDY)
