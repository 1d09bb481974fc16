"""Ways of transformers' `generate` beside the plain one: what acts is the same, or refused."""

import copy
import logging
import string
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from roadint import RoadError, RoadIntervention
from tests.helpers import IDS, build, padded, prompts, trained

GREEDY: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False}


@pytest.mark.parametrize(
    ("how", "cache"), [("assistant", None), ("assistant", "static"), ("lookup", None)]
)
def test_drafts_that_are_rejected_leave_the_cache(how: str, cache: str | None) -> None:
    """A static one too, whose passes follow each other where nothing is drafted."""
    road = trained(build(), RoadIntervention(layer=1, position="first(3)", phase="generated"))
    helper = {"assistant_model": build()} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
    settings = {} if cache is None else {"cache_implementation": cache}
    alone = road.generate(IDS[:1], **GREEDY)
    assert torch.equal(road.generate(IDS[:1], **GREEDY, **helper, **settings), alone)
    assert not torch.equal(road.generate(IDS[:1], **GREEDY, compose=None), alone)


def test_settings_of_the_model_count_beside_a_calls_configuration(llama: PreTrainedModel) -> None:
    road, config = trained(llama), GenerationConfig(max_new_tokens=4, do_sample=False)
    llama.generation_config.guidance_scale = 2.0
    for settings in ({}, {"generation_config": config}):
        with pytest.raises(RoadError, match="guidance_scale=2.0 runs the model on other tokens"):
            road.generate(IDS, **settings)
    llama.generation_config.guidance_scale = None
    llama.generation_config.return_dict_in_generate = True
    road.compile(backend="eager")
    first = road.generate(IDS, generation_config=config)
    before = copy.deepcopy(first.past_key_values)
    road.generate(IDS.flip(1), generation_config=config)
    torch.testing.assert_close(first.past_key_values.layers[0].keys, before.layers[0].keys)


def test_stop_strings_of_the_model(llama: PreTrainedModel, tokenizer: Any) -> None:
    road = trained(llama)
    whole = road.answer(tokenizer, "ab", max_new_tokens=12)[0]
    llama.generation_config.stop_strings = list(string.printable)
    assert len(road.answer(tokenizer, "ab", max_new_tokens=12)[0]) <= 1 < len(whole)


def test_a_paged_cache_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(RoadError, match="cache_implementation='paged' packs all rows into one"):
        trained(llama).generate(IDS, cache_implementation="paged", **GREEDY)


def test_padding_is_inferred_as_transformers_does(llama: PreTrainedModel) -> None:
    """From the generation's own tokens: a row that composes nothing is the base model's."""
    road = trained(llama)
    llama.config.pad_token_id = None
    inputs = padded(prompts([4, 7]), "left")
    inputs["input_ids"][inputs["attention_mask"] == 0] = 90
    ids = inputs["input_ids"]
    expected = llama.generate(ids, pad_token_id=90, **GREEDY)
    assert torch.equal(llama.generate(**inputs, pad_token_id=90, **GREEDY), expected)
    found = road.generate(ids, pad_token_id=90, compose=[None, "a"], **GREEDY)
    assert torch.equal(found[0], expected[0])
    edited = road.generate(**inputs, pad_token_id=90, compose=[None, "a"], **GREEDY)
    assert torch.equal(found, edited)


@pytest.mark.parametrize("whole", [True, False])
def test_a_turn_goes_on_from_the_cache(llama: PreTrainedModel, whole: bool) -> None:
    """With all tokens or those that are new, beside a mask of all."""
    road = trained(llama, RoadIntervention(layer=1, position="last(2)", phase="both"))
    before, new = IDS[:, :4], IDS[:, 4:]
    cache = DynamicCache(config=llama.config)
    llama(before, past_key_values=cache)
    arguments = {"attention_mask": torch.ones_like(IDS), "past_key_values": cache, **GREEDY}
    expected = road.generate(IDS, **GREEDY)[:, IDS.shape[1] :]
    found = road.generate(IDS if whole else new, **arguments)
    assert torch.equal(found[:, -expected.shape[1] :], expected)


def test_packed_rows_are_refused_where_a_position_counts(llama: PreTrainedModel) -> None:
    road = trained(llama)
    road.add_adapter("x")
    packed = {"input_ids": IDS[:1, :6], "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}
    with pytest.raises(RoadError, match="several sequences are packed into a row"):
        road(**packed, compose="a", use_cache=False)
    single = {**packed, "position_ids": torch.zeros(1, 6, dtype=torch.long)}
    with pytest.raises(RoadError, match="several sequences are packed into a row"):
        road(**single, compose="a", use_cache=False)
    for compose in ("x", None):
        road(**packed, compose=compose, use_cache=False)
    everywhere = trained(llama, RoadIntervention(layer=1, position="all"))
    parts = [everywhere(part, use_cache=False).logits for part in IDS[:1, :6].split(3, dim=1)]
    whole = everywhere(**packed, use_cache=False).logits
    torch.testing.assert_close(whole, torch.cat(parts, dim=1), rtol=1e-4, atol=1e-4)
    road(**packed, compose="a", positions=[[2, 5]], use_cache=False)
    apart = {**packed, "position_ids": torch.arange(2, 8)[None]}
    road(**apart, compose="a", use_cache=False)


def test_a_configuration_stays_alone(
    llama: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers warns of settings beside it, and will refuse them."""
    config = GenerationConfig(max_new_tokens=3, do_sample=False)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        trained(llama).generate(IDS, generation_config=config)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "deprecated" not in caplog.text


def test_drafts_run_uncompiled_and_the_log_says_so(
    llama: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    road = trained(llama)
    expected = road.generate(IDS[:1], **GREEDY)
    road.compile(backend="eager")
    found = road.generate(IDS[:1], **GREEDY, prompt_lookup_num_tokens=2)
    assert torch.equal(found, expected)
    assert "a call runs uncompiled: something else drafts tokens" in caplog.text
