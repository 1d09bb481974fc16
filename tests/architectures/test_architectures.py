"""Every decoder type that transformers offers: each component, and adapters, are right or refused by name; nothing is silent."""

import logging
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import transformers

from tests.architectures.sweep import Fault, Outcome, sweep
from tests.architectures.tiny import UNBUILT, Case, build, cases

CASES = [case for case in cases() if case.class_name not in UNBUILT]

# What must not be refused: all three components of these types ...
_WHOLE = """
    afmoe apertus arcee aria_text aya_vision bitnet cohere cohere2 cwm deepseek_v2 deepseek_v3 diffllama doge dots1 ernie4_5
    ernie4_5_moe exaone exaone4 falcon falcon_h1 flex_olmo gemma gemma2 gemma3 gemma3_text gemma4_text glm glm4 glm4_moe glm4v
    gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe helium hunyuan_v1_dense hunyuan_v1_moe idefics2
    idefics3 internlm3 internvl jais2 llama llava llava_next llava_onevision minicpm3 minimax ministral ministral3 mistral
    mistral3 mixtral modernbert-decoder nanochat nemotron olmo olmo2 olmo3 olmoe paligemma persimmon phi phi3 phimoe qwen2
    qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_vl qwen3_vl_moe seed_oss smollm3 smolvlm solar_open stablelm
    starcoder2 vaultgemma video_llava voxtral
"""
# ... and the output of blocks, and adapters, everywhere but here: class → what may be refused, and why.
MAY_REFUSE: dict[str, str] = {
    "BltForCausalLM": "tokens are grouped into patches",
    "CpmAntForCausalLM": "its layers run on a prompt of its own before the tokens",
    "DeepseekV4ForCausalLM": "several streams of hidden states a token",
    "EvollaForProteinText2Text": "layers inside of its language model take a protein, and don't run on text alone",
    "Gemma3nForCausalLM": "several streams of hidden states a token",
    "Glm5NextForConditionalGeneration": "several streams of hidden states a token",
    "HYV4ForCausalLM": "several streams of hidden states a token",
    "HYV4VLForConditionalGeneration": "several streams of hidden states a token",
    "HrmTextForCausalLM": "its layers run in cycles, num_hidden_layers counts the passes",
    "LongcatFlashForCausalLM": "two attentions a layer, num_hidden_layers counts them",
    "OpenAIGPTLMHeadModel": "its layers return lists",
    "ProphetNetForCausalLM": "it runs several streams of tokens side by side",
    "Qwen4ExpForCausalLM": "several streams of hidden states a token",
    "Qwen4ExpForConditionalGeneration": "several streams of hidden states a token",
    "ReformerModelWithLMHead": "two streams of hidden states in reversible layers",
    "XLMWithLMHeadModel": "no modules for its layers",
    "XLNetLMHeadModel": "columns before rows",
    "ZambaForCausalLM": "layers share their weights",
    "Zamba2ForCausalLM": "layers share their weights",
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_component_is_right_or_refused(
    case: Case, record_property: Callable[[str, object], None]
) -> None:
    try:
        outcomes = sweep(build(case))
    except Fault as fault:
        outcomes = [Outcome("model", "FAULT", str(fault))]
    record_property("case", [case.model_type, case.class_name])
    record_property("outcomes", [[each.component, each.verdict, each.text] for each in outcomes])
    faults = [f"{each.component}: {each.text}" for each in outcomes if each.verdict == "FAULT"]
    assert not faults, "\n".join(faults)
    refused = {each.component: each.text for each in outcomes if each.verdict == "refused"}
    wanted = _wanted(case, outcomes)
    assert not wanted & set(refused), {name: refused[name] for name in wanted & set(refused)}


def test_the_sweep_is_of_nearly_all_types() -> None:
    assert len(CASES) >= 0.95 * len(cases())
    assert {case.class_name for case in cases()} >= set(UNBUILT) | set(MAY_REFUSE)


def _wanted(case: Case, outcomes: Sequence[Outcome]) -> set[str]:
    if all(each.verdict == "refused" and each.text for each in outcomes) and "adapters" not in {
        each.component for each in outcomes
    }:
        return set()  # an encoder-decoder
    wanted = set() if case.class_name in MAY_REFUSE else {"block_output", "adapters"}
    return wanted | (
        {"attention_output", "mlp_output"} if case.model_type in _WHOLE.split() else set()
    )
