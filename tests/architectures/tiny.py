"""Tiny random models of every decoder type that transformers offers, made from the types' own configurations."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, CLIPVisionConfig, PreTrainedConfig, SiglipVisionConfig
from transformers.models.auto import modeling_auto

VOCABULARY, WIDTH, LAYERS, HEADS = 128, 32, 3, 4

_LISTS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
)

# Sizes by the names that configurations use.
_BY_NAME: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        (
            "hidden_size",
            "n_embd",
            "d_model",
            "emb_dim",
            "embed_dim",
            "embedding_dim",
            "embedding_size",
        ),
        WIDTH,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "layers",
        ),
        LAYERS,
    ),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_blocks", "depth"), LAYERS),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "encoder_attention_heads",
        ),
        HEADS,
    ),
    **dict.fromkeys(
        ("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"),
        HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads"), 2),
    **dict.fromkeys(
        (
            "head_dim",
            "d_kv",
            "d_head",
            "dim_head",
            "attention_head_size",
            "kv_channels",
            "v_head_dim",
        ),
        8,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_dim",
            "d_ff",
            "dff",
            "dim_ff",
        ),
        48,
    ),
    **dict.fromkeys(("ffn_hidden_size", "n_inner", "mlp_dim", "d_inner", "feed_forward_size"), 48),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_intermediate_size", "shared_expert_intermediate_size"), 16
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"), 64
    ),
    **dict.fromkeys(("max_target_positions", "max_source_positions"), 64),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_size", "local_attention", "attention_window_size"), 6
    ),
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
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
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
        for model_type, class_names in getattr(modeling_auto, name, {}).items():
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
    return _shrunk(CONFIG_MAPPING[model_type]())


def _shrunk(default: PreTrainedConfig) -> PreTrainedConfig:
    """The same configuration in tiny sizes, from the default values of its fields; those inside of it too."""
    kind = type(default)
    special = itertools.count(VOCABULARY - 1, -1)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = vars(default).get(kind.attribute_map.get(field.name, field.name))
        told = (
            field.default not in (None, dataclasses.MISSING)
            or field.default_factory is not dataclasses.MISSING
        )
        if field.name in kind.sub_configs:
            found = _shrunk(value) if isinstance(value, PreTrainedConfig) else None
        elif isinstance(value, int) and not isinstance(value, bool):
            found = _integer(field.name, value, told, special)
        else:
            found = _other(field.name, value)
        if found is not None:
            arguments[field.name] = found
    if arguments.get("kv_lora_rank"):
        arguments["num_key_value_heads"] = HEADS  # latent attention has no groups
    return kind(**arguments | _CORRECTIONS.get(kind.__name__, {}))


def _integer(name: str, value: int, told: bool, special: Iterator[int]) -> int | None:
    """The tiny value of a field; None where it stays as it is, or is derived from others (told: whether it has a default)."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name in _BY_NAME and (told or name in _EVEN_UNTOLD):
        return int(_BY_NAME[name])
    if not told or name in _BY_NAME:
        return None
    if name.endswith(("_id", "_index")):
        return next(special) if value > 8 else None
    for part, most in (("layers", LAYERS), ("heads", HEADS)):
        if part in name and value > most:
            return most
    return WIDTH if value > 64 else None


def _other(name: str, value: Any) -> Any:
    """The same for a field that is no integer."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name == "is_decoder":
        return True
    if name == "rope_parameters" and isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": [2, 1, 1]}
    if value is None and name in _EVEN_UNTOLD:
        return _BY_NAME[name]
    lists = isinstance(value, (list, tuple)) and name not in ("architectures", "languages")
    if (
        lists and value and all(isinstance(each, str) for each in value)
    ):  # the kind of each layer: all kinds, in turn
        kinds = list(dict.fromkeys(value))
        if (
            kinds[0] == "full_attention"
        ):  # a cache may ask the first layer how long it is: let it be of another kind
            kinds = [*kinds[1:], kinds[0]]
        return type(value)(kinds[index % len(kinds)] for index in range(max(LAYERS, len(kinds))))
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


# What the rules above don't get right: class of configuration → arguments.
_MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
}
_MROPE_OF_HALF = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 0],
        "partial_rotary_factor": 0.5,
    }
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 4,
}
# in the place of a tower of timm's, which is no dependency
_SIGLIP = SiglipVisionConfig(**_TOWER, model_args={"embed_dim": WIDTH})
_CORRECTIONS: dict[str, dict[str, Any]] = {
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "VibeVoiceAcousticTokenizerEncoderConfig": {"num_filters": 2, "depths": (1,) * 7},
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2},
    "Blip2Config": {"num_query_tokens": 1, "image_token_index": 120},
    "InstructBlipConfig": {"num_query_tokens": 1, "image_token_index": 120},
    "InstructBlipVideoConfig": {"num_query_tokens": 1, "video_token_index": 120},
    "Kosmos2Config": {"latent_query_num": 1},
    "BltConfig": {"use_cache": False},
    "DeepseekOcr2SamVisionConfig": {"downsample_channels": [32, 32]},
    "UnlimitedOcrSamVisionConfig": {"downsample_channels": (32, 32)},
    "Apertus1p5VisionTokenizerConfig": {
        "channel_multiplier": (1,),
        "num_res_blocks": 1,
        "latent_channels": 32,
    },
    "WavTokenizerEncoderConfig": {"num_filters": 4, "decoder_num_layers": 1},
    "Emu3VQVAEConfig": {"channel_multiplier": (1,), "num_res_blocks": 1},
    "JanusVQVAEConfig": {"channel_multiplier": (1,), "num_res_blocks": 1},
    "ChameleonVQVAEConfig": {"channel_multiplier": (1,), "num_res_blocks": 1},
    "Florence2VisionConfig": {
        "depths": (1, 1, 1, 1),
        "embed_dim": (32, 32, 32, 32),
        "num_heads": (4, 4, 4, 4),
        "num_groups": (4, 4, 4, 4),
    },
    "MimiConfig": {"num_filters": 4, "upsample_groups": 32},
    "OmniASRAudioConfig": {"conv_dim": (32,) * 7, "num_conv_pos_embedding_groups": 4},
    "MusicgenDecoderConfig": {"num_codebooks": 1},
    "MusicgenMelodyDecoderConfig": {"num_codebooks": 1},
    "Nemotron3DiarizationConfig": {
        "chunk_length": 96,
        "chunk_right_context": 8,
        "chunk_left_context": 8,
    },
    "VibeVoiceAsrConfig": {"acoustic_tokenizer_chunk_size": 3200},
    "Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": 16},
    "PerceptionLMConfig": {"vision_config": _SIGLIP},
    "Apertus1p5Config": {"image_token_offset": 32, "audio_token_offset": 64},
    "BambaConfig": {**_MAMBA, "attn_layer_indices": [1]},
    "ChameleonConfig": {"vocabulary_map": {"<image>": 120}},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": _MROPE["rope_parameters"]}},
    "DeepseekV2Config": {"num_experts_per_tok": 2},
    "DeepseekOcr2TextConfig": {
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "DeepseekV32Config": {"head_dim": 4},
    "DiffusionGemmaTextConfig": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "DoryConfig": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
    },
    "Dots1Config": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "Dots3NoteTextConfig": {
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 8,
        "swa_qk_nope_head_dim": 4,
        "swa_v_head_dim": 8,
    },
    "Emu3Config": {"vocabulary_map": {"<image>": 120}},
    "Ernie4_5_VLMoeTextConfig": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 2],
        },
        "moe_intermediate_size": [16, 16],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "FastVlmConfig": {"vision_config": _SIGLIP},
    "FunAsrNanoAdaptorConfig": {"intermediate_size": 8},
    "Gemma3nTextConfig": {"intermediate_size": 48, "num_kv_shared_layers": 1},
    "Glm46VTextConfig": _MROPE_OF_HALF,
    "Glm4vTextConfig": _MROPE_OF_HALF,
    "Glm4vMoeTextConfig": _MROPE_OF_HALF,
    "GlmOcrTextConfig": _MROPE_OF_HALF,
    "GlmMoeDsaConfig": {"head_dim": 4},
    "Glm5NextTextConfig": {"qk_rope_head_dim": 0, "head_dim": 0, "qk_nope_head_dim": 8},
    "GPTNeoConfig": {
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 6,
    },
    "Granite4VisionConfig": {
        "vision_config": CLIPVisionConfig(
            **{**_TOWER, "hidden_size": 64}
        ),  # a head of its Q-Former is 64 wide
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
        "spatial_target_layers": [1, 1, 2, 2],
    },
    "GraniteMoeHybridConfig": {
        **_MAMBA,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "HYV4Config": {"head_dim": 4},
    "HYV4VLTextConfig": {
        "head_dim": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 0],
        },
    },
    "HunYuanVLTextConfig": _MROPE,
    "InklingVisionConfig": {"num_hidden_layers": LAYERS, "patch_size": 8},
    "JambaConfig": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "LongcatFlashConfig": {"head_dim": 4},
    "Mamba2Config": {"head_dim": 16, "n_groups": 2},
    "MistralLarge4TextConfig": {"head_dim": 4},
    "Molmo2AdapterConfig": {"vision_feature_layer": [2, 1]},
    "MuseSparkAudioConfig": {
        "patch_sizes": (4, 4),
        "hidden_sizes": (32, 32),
        "depths": (1, 1),
        "num_hidden_layers": 2,
    },
    "NemotronHConfig": {
        "mamba_head_dim": 16,
        "n_groups": 2,
        "layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"],
    },
    "PaddleOCRTextConfig": _MROPE,
    "Qwen2_5OmniTextConfig": _MROPE,
    "Qwen2_5OmniThinkerConfig": {"vision_start_token_id": 120},
    "Qwen2_5_VLTextConfig": _MROPE,
    "Qwen2VLTextConfig": _MROPE,
    "Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": 120},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 64,
    },
    "RadioConfig": {"video_temporal_patch_size": 2, "patch_dim": 48, "video_patch_dim": 96},
    "ReformerConfig": {
        "attn_layers": ["local", "local", "local"],
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (16, 16),
        "local_attn_chunk_length": 4,
    },
    "Step3p7TextConfig": {"sliding_window": 6},
    "XmodConfig": {"default_language": "en_XX"},
    "xLSTMConfig": {"hidden_size": 64, "qk_dim_factor": 1.0},  # it rounds widths up to 64
    "ZambaConfig": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "ZayaConfig": {"num_experts_per_tok": 1},
}


def extra_inputs(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model wants beside tokens, as tensors of as many rows; may put the token of an image into the first column."""
    name, rows = type(model).__name__, len(ids)
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(rows, 3, 16, 16, generator=generator)
    if name == "BlipForConditionalGeneration":
        return {"pixel_values": image}
    if name in ("Blip2ForConditionalGeneration", "InstructBlipForConditionalGeneration"):
        ids[:, 0] = 120
        more = (
            {"qformer_input_ids": torch.full((rows, 4), 9)} if name.startswith("Instruct") else {}
        )
        return {"pixel_values": image, **more}
    if name == "InstructBlipVideoForConditionalGeneration":
        ids[:, 0] = 120
        return {"pixel_values": image[:, None], "qformer_input_ids": torch.full((rows, 4), 9)}
    if name == "IdeficsForVisionText2Text":
        return {
            "pixel_values": image[:, None],
            "image_attention_mask": torch.ones(*ids.shape, 1, dtype=torch.long),
        }
    if name == "Kosmos2ForConditionalGeneration":
        places = torch.zeros_like(ids)
        places[:, 0] = 1
        return {"pixel_values": image, "image_embeds_position_mask": places}
    return {}


# Types that no tiny model is made of, or that can't be asked about text: class → why.
UNBUILT: dict[str, str] = {
    "DiffusionGemmaForBlockDiffusion": "its forward answers for a canvas of noise, not for its input",
    "Gemma3nForConditionalGeneration": "its vision tower needs timm (its text model is in the sweep)",
    "Gemma4AssistantForCausalLM": "a draft model: it runs on another model's keys and values alone",
    "Gemma4UnifiedAssistantForCausalLM": "a draft model: it runs on another model's keys and values alone",
    "KyutaiSpeechToTextForConditionalGeneration": "it wants 32 codes of audio beside each token",
    "Llama4ForConditionalGeneration": "its own forward raises AttributeError in transformers 5.24 (its text model is in the sweep)",
    "PI0ForConditionalGeneration": "it answers with a robot's actions, not with tokens",
    "VoxtralRealtimeForConditionalGeneration": "it wants audio beside each token",
}
