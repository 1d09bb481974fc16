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
    """

    summed: bool
    grouped: frozenset[str] = field(default=frozenset())


_SUMMED = """
    AfmoeDecoderLayer ApertusDecoderLayer DeepseekV2DecoderLayer Ernie4_5_MoeDecoderLayer
    GemmaDecoderLayer Gemma2DecoderLayer Gemma3DecoderLayer Glm4DecoderLayer Glm4MoeDecoderLayer
    JambaMambaDecoderLayer JambaAttentionDecoderLayer Lfm2AttentionDecoderLayer
    Lfm2ShortConvDecoderLayer LlamaDecoderLayer Llama4DecoderLayer MambaDecoderLayer
    Mamba2DecoderLayer MiniMaxM2DecoderLayer MistralDecoderLayer MixtralDecoderLayer
    NemotronDecoderLayer NemotronHMLPDecoderLayer NemotronHMambaDecoderLayer
    NemotronHAttentionDecoderLayer NemotronHMoEDecoderLayer OlmoeDecoderLayer Qwen2DecoderLayer
    Qwen2MoeDecoderLayer Qwen3DecoderLayer Qwen3MoeDecoderLayer Qwen3NextDecoderLayer
    TransformerBlock
"""
_WHOLE = """
    BloomBlock CohereDecoderLayer Exaone4DecoderLayer FalconDecoderLayer FalconH1ParallelHybrid
    GPT2Block GPTJBlock Gemma4DecoderLayer GraniteDecoderLayer GraniteMoeDecoderLayer
    GraniteMoeSharedDecoderLayer OPTDecoderLayer PhiMoEDecoderLayer StablelmDecoderLayer
"""
KNOWN: Mapping[str, KnownLayer] = {
    **dict.fromkeys(_SUMMED.split(), KnownLayer(summed=True)),
    **dict.fromkeys(_WHOLE.split(), KnownLayer(summed=False)),
    **dict.fromkeys(
        ("BloomBlock", "FalconDecoderLayer"),
        KnownLayer(summed=False, grouped=frozenset({"query_key_value"})),
    ),
}
"""The class that defines a layer's forward → what is known of it."""


def known_layer(layer: object) -> KnownLayer:
    """What is known of a decoder layer of one of vLLM's own models.

    Raises:
        RoadError: where nothing is.
    """
    kind = type(layer)
    name = getattr(kind, "forward").__qualname__.partition(".")[0]  # noqa: B009
    if name not in KNOWN:
        raise RoadError(
            f"vLLM's {kind.__name__} was not compared with transformers, so edits of it might act "
            "wrongly: expected model_impl='transformers', with which vLLM runs transformers' own "
            "layers"
        )
    return KNOWN[name]
