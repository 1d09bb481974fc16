"""Tiny random models of many architectures, and checkpoints that edit all that can be edited."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import roadint
from roadint import RoadIntervention, RoadModel
from roadint.architecture.layers import COMPONENTS
from roadint.errors import RoadError
from tests.vllm.checkpoints import save

LAYER = 1
POSITIONS: dict[str, Mapping[str, Any]] = {
    "last": {"position": "last"},
    "all": {"position": "all"},
    "said": {"position": "all", "phase": "generated"},
}
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 32}


_WINDOW = {"sliding_window": 64}
_GEMMA = {**HEADS, **_WINDOW, "query_pre_attn_scalar": 32}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_WIDE_EXPERTS = {**_EXPERTS, "moe_intermediate_size": 64}


class Case(NamedTuple):
    """A model, and how far vLLM itself is from transformers, in nats, where it computes otherwise.

    Args:
        model_type: transformers' name of it.
        further: Further fields of its configuration.
        own: How far vLLM is from transformers without edits.
        unlike: The components, and the adapters ("neighbours", "halves"), that are refused, and a
            part of the reason.
        settings: Further arguments of `LLM`.
    """

    model_type: str
    further: Mapping[str, Any] = {}
    own: float = 0.0
    unlike: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}


_ADAPTERS = ("neighbours", "halves")
_PAIRS = {"halves": "is paired in groups of"}  # halves of all heads together
OWN = {"model_impl": "transformers"}
CASES = {
    "llama": Case("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": Case("mistral", HEADS),
    "qwen2": Case("qwen2", GROUPED),
    "qwen3": Case("qwen3", HEADS),
    "gemma2": Case("gemma2", _GEMMA),
    "gemma3": Case("gemma3_text", _GEMMA),
    "gemma4": Case("gemma4_text", HEADS),
    "phi3": Case("phi3", GROUPED),  # fused layers in transformers too
    "glm4": Case("glm4", HEADS),
    "gpt2": Case("gpt2", {"n_inner": 192}),  # Conv1D
    "opt": Case("opt", {"ffn_dim": 192, "word_embed_proj_dim": 128}),
    "granite": Case("granite", {**GROUPED, "residual_multiplier": 0.7}),
    "cohere": Case("cohere", {**GROUPED, "logit_scale": 1.0}),  # attention beside the network
    "stablelm": Case("stablelm", GROUPED),
    "falcon": Case("falcon"),
    "falcon of groups": Case(
        "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, unlike=_PAIRS
    ),
    "falcon of heads": Case(
        "falcon", {"multi_query": False, "parallel_attn": False}, unlike=_PAIRS
    ),
    "falcon with biases": Case(
        "falcon",
        {"bias": True, "multi_query": False, "parallel_attn": False},
        unlike={
            **dict.fromkeys(("attention_output", "mlp_output"), "leaves its bias to a later sum"),
            **dict.fromkeys(_ADAPTERS, "adds the bias of it later, elsewhere"),
        },
    ),
    "mixtral": Case("mixtral", {**HEADS, **_LOCAL_EXPERTS}),
    "qwen3_moe": Case("qwen3_moe", {**HEADS, **_WIDE_EXPERTS}),
    "gpt_oss": Case("gpt_oss", {**HEADS, **_LOCAL_EXPERTS, **_WINDOW}),
    "llama4": Case(
        "llama4_text",
        {
            **HEADS,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 192,
            "interleave_moe_layer_step": 2,
        },
        unlike=dict.fromkeys(_ADAPTERS, "keeps its outputs in another order"),
    ),
    # What vLLM runs with transformers' own layers, as it has none, or as it is asked to.
    "olmo2": Case("olmo2", GROUPED),
    "gpt_neox": Case("gpt_neox"),
    "gpt_bigcode": Case("gpt_bigcode", {"n_inner": 192}),
    "transformers' llama": Case("llama", GROUPED, settings=OWN),
    "transformers' gemma3": Case("gemma3_text", _GEMMA, settings=OWN),
    "transformers' mixtral": Case("mixtral", {**HEADS, **_LOCAL_EXPERTS}, settings=OWN),
    "transformers' cohere": Case("cohere", {**GROUPED, "logit_scale": 1.0}, settings=OWN),
}
MORE = {
    "apertus": Case("apertus", HEADS, own=5e-3),
    "arcee": Case("arcee", HEADS),
    "bloom": Case("bloom", own=1e-3, unlike=_PAIRS),
    "cohere2": Case("cohere2", {**GROUPED, **_WINDOW, "logit_scale": 1.0}),
    "ernie4_5": Case("ernie4_5", HEADS),
    "exaone4": Case("exaone4", {**HEADS, **_WINDOW}),
    "gemma": Case("gemma", HEADS),
    "glm": Case("glm", HEADS),
    "glm4_moe": Case(
        "glm4_moe",
        {
            **HEADS,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
        },
    ),
    "gptj": Case("gptj", {"rotary_dim": 16, "n_inner": 192}),
    "granitemoe": Case("granitemoe", {**GROUPED, **_LOCAL_EXPERTS}),
    "granitemoeshared": Case(
        "granitemoeshared", {**GROUPED, **_LOCAL_EXPERTS, "shared_intermediate_size": 64}
    ),
    "helium": Case("helium", HEADS),
    "hunyuan_v1_dense": Case("hunyuan_v1_dense", HEADS),
    "ministral": Case("ministral", HEADS),
    "ministral3": Case("ministral3", HEADS),
    "nemotron": Case("nemotron", HEADS),
    "nemotron_h": Case(
        "nemotron_h",
        {
            **HEADS,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
        },
        own=1e-3,
    ),
    "olmo": Case("olmo", GROUPED),
    "olmo3": Case("olmo3", {**GROUPED, **_WINDOW}),
    "olmoe": Case("olmoe", {**GROUPED, **_EXPERTS}),
    "phi": Case("phi"),
    "qwen2_moe": Case(
        "qwen2_moe", {**GROUPED, **_WIDE_EXPERTS, "shared_expert_intermediate_size": 64}
    ),
    "seed_oss": Case("seed_oss", HEADS),
    "smollm3": Case("smollm3", GROUPED),
    "starcoder2": Case("starcoder2", GROUPED),
    "vaultgemma": Case("vaultgemma", _GEMMA),
}
"""What is tested when there is time."""


def make(model_type: str, folder: Path, **further: Any) -> Any:
    """A model with random weights, biases and norms, in float32, which is saved."""
    config = AutoConfig.for_model(model_type, **SIZES | further)
    auto: Any = AutoModelForCausalLM
    torch.manual_seed(0)
    # Other implementations leave the soft caps of Gemma 2 out.
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim > 1:
                parameter.copy_(0.12 * noise)
            else:
                parameter.add_(0.2 * noise)
    model.save_pretrained(folder)
    return model


def edits(model: Any) -> list[RoadIntervention]:
    """Every component at every kind of position, where RoadModel runs it."""
    found = []
    for component in COMPONENTS:
        parts = [
            RoadIntervention(
                layer=LAYER,
                component=component,
                subspaces={f"{component}_{name}": "[0, d)"},
                **arguments,
            )
            for name, arguments in POSITIONS.items()
        ]
        try:
            road, prompt = RoadModel(model, parts), torch.tensor([[5, 6, 7]])
            road(input_ids=prompt, compose=f"{component}_all")
        except RoadError:
            continue
        found += parts
    return found


def adapters(model: Any) -> list[Any]:
    """All linear layers, with both pairings."""
    road = roadint.add_linear_road(model, name="neighbours")
    road.add_adapter("halves", pairing="half", variant="road_2")
    return list(road.adapters.values())


def save_edits(model: Any, folder: Path) -> str:
    return save(model, folder, edits(model), seed=1)


def save_adapters(model: Any, folder: Path) -> str:
    return save(model, folder, [], adapters(model), seed=2)
