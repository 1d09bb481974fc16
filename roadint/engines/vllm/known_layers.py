"""What the decoder layers of vLLM's own models return, and how their fused layers lie.

vLLM writes every architecture anew, so it can't be told from its modules alone what they compute.
These were compared with transformers. Others are refused, also as vLLM's Transformers backend runs
whatever transformers has, and there modules are transformers' own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from roadint.errors import RoadError


@dataclass(frozen=True)
class KnownLayer:
    """Decoder layers of one class.

    Args:
        summed: Whether a layer returns what it added last and the rest of the residual stream,
            whose sum is its output; other layers return their output, alone or as the first of two.
        grouped: Layers that hold queries, keys and values, as one layer in transformers too, where
            these lie group by group: the queries of a group, its key, its value.
        reordered: Layers whose outputs lie in another order than in transformers.
    """

    summed: bool
    grouped: frozenset[str] = field(default=frozenset())
    reordered: frozenset[str] = field(default=frozenset())


_SUMMED = """
    apertus.ApertusDecoderLayer gemma.GemmaDecoderLayer gemma2.Gemma2DecoderLayer
    gemma3.Gemma3DecoderLayer glm4.Glm4DecoderLayer glm4_moe.Glm4MoeDecoderLayer
    gpt_oss.TransformerBlock llama.LlamaDecoderLayer mistral.MistralDecoderLayer
    mixtral.MixtralDecoderLayer nemotron.NemotronDecoderLayer
    nemotron_h.NemotronHAttentionDecoderLayer nemotron_h.NemotronHMLPDecoderLayer
    nemotron_h.NemotronHMambaDecoderLayer olmoe.OlmoeDecoderLayer qwen2.Qwen2DecoderLayer
    qwen2_moe.Qwen2MoeDecoderLayer qwen3.Qwen3DecoderLayer qwen3_moe.Qwen3MoeDecoderLayer
"""
_WHOLE = """
    commandr.CohereDecoderLayer exaone4.Exaone4DecoderLayer gemma4.Gemma4DecoderLayer
    gpt2.GPT2Block gpt_j.GPTJBlock granite.GraniteDecoderLayer granitemoe.GraniteMoeDecoderLayer
    granitemoeshared.GraniteMoeSharedDecoderLayer opt.OPTDecoderLayer
    stablelm.StablelmDecoderLayer
"""
_GROUPED = "bloom.BloomBlock falcon.FalconDecoderLayer"
KNOWN: Mapping[str, KnownLayer] = {
    **dict.fromkeys(_SUMMED.split(), KnownLayer(summed=True)),
    **dict.fromkeys(_WHOLE.split(), KnownLayer(summed=False)),
    **dict.fromkeys(
        _GROUPED.split(), KnownLayer(summed=False, grouped=frozenset({"query_key_value"}))
    ),
    "llama4.Llama4DecoderLayer": KnownLayer(
        summed=True,
        reordered=frozenset({"q_proj", "k_proj"}),  # for its rotary embedding
    ),
}
"""The module and the class that define a layer's forward → what is known of the layer."""


def known_layer(layer: object) -> KnownLayer:
    """What is known of a decoder layer of one of vLLM's own models.

    Raises:
        RoadError: where nothing is.
    """
    forward = getattr(type(layer), "forward")  # noqa: B009
    module, kind = forward.__module__.rpartition(".")[2], forward.__qualname__.partition(".")[0]
    if f"{module}.{kind}" not in KNOWN:
        raise RoadError(
            f"vLLM's {type(layer).__name__} was not compared with transformers, so edits of it "
            "might act wrongly: expected model_impl='transformers', with which vLLM runs "
            "transformers' own layers"
        )
    return KNOWN[f"{module}.{kind}"]
