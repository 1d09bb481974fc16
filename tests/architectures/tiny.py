"""Tiny random models of every decoder type that transformers offers, made from the types' own configurations."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

VOCABULARY, WIDTH, LAYERS, HEADS = 128, 32, 3, 4

_LISTS = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")

# Sizes by the names that configurations use; a name ending with "*" stands for every name that begins so.
_BY_NAME: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embed_dim", "embedding_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "layers"), LAYERS),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_blocks", "depth"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "dim_head", "attention_head_size", "kv_channels", "v_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "dff", "dim_ff"), 48),
    **dict.fromkeys(("ffn_hidden_size", "n_inner", "mlp_dim", "d_inner", "feed_forward_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"), 64),
    **dict.fromkeys(("max_target_positions", "max_source_positions"), 64),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "local_attention", "attention_window_size"), 6),
    **dict.fromkeys(("image_size", "crop_size"), 16),
    "patch_size": 4,
    "n_group": 1,
    "topk_group": 1,
    "layer_group_size": 3,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "rotary_dim": 4,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 64,
    "state_size": 8,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "block_size": 8,
}
_EVEN_UNTOLD = ("head_dim", "num_key_value_heads")  # some types don't derive them from the others


@dataclass(frozen=True)
class Case:
    """One model class of one model type."""

    model_type: str
    class_name: str

    def __str__(self) -> str:
        return f"{self.model_type}-{self.class_name}"


def cases() -> list[Case]:
    """Every type and class of transformers' lists, each once."""
    found: dict[Case, None] = {}
    for name in _LISTS:
        for model_type, class_names in getattr(modeling_auto, name).items():
            for class_name in [class_names] if isinstance(class_names, str) else class_names:
                found[Case(model_type, class_name)] = None
    return list(found)


def build(case: Case) -> nn.Module:
    """A model of this case with random weights, in float32; its logits differ visibly between tokens."""
    kind: Any = getattr(transformers, case.class_name)
    torch.manual_seed(0)
    model: nn.Module = kind(_fitting(configuration(case.model_type), kind)).eval()
    _draw(model)
    return model


def _fitting(config: PreTrainedConfig, kind: Any) -> PreTrainedConfig:
    """The part of a configuration that this class of model takes: a text model's, out of a multimodal one's."""
    wanted = kind.config_class
    if wanted is None or isinstance(config, wanted):
        return config
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return next((part for part in parts if isinstance(part, wanted)), config)


def configuration(model_type: str) -> PreTrainedConfig:
    """The type's own configuration, in tiny sizes."""
    default = CONFIG_MAPPING[model_type]()
    return _shrunk(default, model_type)


def _shrunk(default: PreTrainedConfig, path: str) -> PreTrainedConfig:
    kind = type(default)
    values = vars(default)
    special = itertools.count(VOCABULARY - 1, -1)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name, value = field.name, values.get(field.name)
        if name in kind.sub_configs:
            if isinstance(value, PreTrainedConfig):
                arguments[name] = _shrunk(value, f"{path}.{name}")
            continue
        told = field.default is not dataclasses.MISSING and field.default is not None or field.default_factory is not dataclasses.MISSING
        found = _size(name, value, told, special)
        if found is not None:
            arguments[name] = found
    if arguments.get("kv_lora_rank"):
        arguments["num_key_value_heads"] = HEADS  # latent attention has no groups
    arguments |= _CORRECTIONS.get(path, {})
    return kind(**arguments)


def _size(name: str, value: Any, told: bool, special: Iterator[int]) -> Any:
    """The tiny value of one field; None where it stays as it is."""
    if name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        return {"pad": 0, "bos": 1, "eos": 2}[name[:3]]
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value) and name not in ("architectures", "languages"):
        kinds = list(dict.fromkeys(value))
        count = max(LAYERS, len(kinds))
        return type(value)(kinds[index % len(kinds)] for index in range(count))
    if value is None and name in _EVEN_UNTOLD:
        return _BY_NAME[name]
    if name == "rope_parameters" and isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": [2, 1, 1] if value.get("partial_rotary_factor", 1) == 1 else [1, 1, 0]}
    if name == "is_decoder":
        return True
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        if name in _BY_NAME:
            return _BY_NAME[name] if told or name in _EVEN_UNTOLD else None
        if not told:
            return None
        if name.endswith(("token_id", "token_index", "_id", "_index")):
            return next(special) if value > 8 else None
        if "layers" in name and value > LAYERS:
            return LAYERS
        if "heads" in name and value > HEADS:
            return HEADS
        if value > 64:
            return WIDTH
    return None


def _draw(model: nn.Module) -> None:
    """Random values of a size that keeps hidden states at theirs, whatever a type starts from; some start at zero, or at nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
            elif not bool(parameter.isfinite().all()) or bool((parameter.abs() > 100).any()):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)


# What the rules above don't get right: path of a configuration → arguments.
_CORRECTIONS: dict[str, dict[str, Any]] = {}
