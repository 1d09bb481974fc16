"""The right place in every kind of model, or a refusal that names it; the sweep over all architectures lies in tests/architectures."""

from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV4Config,
    DeepseekV4ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from roadint.adapters.targets import find_targets
from roadint.architecture.layers import (
    decoder_of,
    find_layers,
    inner_model,
    is_after,
    site_path,
)
from roadint.architecture.properties import device_of
from tests.helpers import LAYERS, SIZES, WIDTH, build, encoder, randomised, scaled, trained
from tests.vision import llava

IDS = torch.arange(10, 28).reshape(2, 9)


def audio() -> PreTrainedModel:
    """A language model behind an audio tower that is as deep."""
    torch.manual_seed(0)
    tower = {
        "num_mel_bins": 16,
        "encoder_layers": LAYERS,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "d_model": 32,
    }
    config = Qwen2AudioConfig(
        audio_token_index=120,
        text_config={**SIZES, "num_key_value_heads": 2, "model_type": "qwen2"},
        audio_config={**tower, "max_source_positions": 20},
    )
    return scaled(Qwen2AudioForConditionalGeneration(config))


def test_the_language_model_is_edited_and_not_another_tower() -> None:
    model = audio()
    path, layers = find_layers(model)
    assert "language_model" in path
    assert layers is model.get_decoder().layers
    road = trained(model)
    base = model(input_ids=IDS).logits
    assert not torch.allclose(
        road(input_ids=IDS, compose="a").logits[:, -1], base[:, -1], atol=1e-2
    )
    adapter = road.add_adapter("x")
    assert all(each.startswith(path) for each in adapter.layout.paths)
    named = road.add_adapter(
        "y", targets=["audio_tower.layers.0.fc1", "multi_modal_projector.linear"]
    )
    assert [each.partition(".")[0] for each in named.layout.paths] == [
        "audio_tower",
        "multi_modal_projector",
    ] or "model" in named.layout.paths[0]
    assert torch.equal(
        road(input_ids=IDS, compose="y").logits, base
    )  # no audio, so nothing for it to turn
    randomised(adapter, 3)
    live = road(input_ids=IDS, compose="x").logits
    with road.merged("x") as plain:
        torch.testing.assert_close(plain(input_ids=IDS).logits, live, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4)
        ),
        lambda: BartForConditionalGeneration(
            BartConfig(vocab_size=128, d_model=32, encoder_layers=3, decoder_layers=3)
        ),
    ],
)
def test_encoder_decoders_are_refused(make: Any) -> None:
    for build_road in (
        lambda model: RoadModel(model, RoadIntervention(layer=1)),
        roadint.add_linear_road,
    ):
        with pytest.raises(RoadError, match="is an encoder-decoder.*expected a decoder-only"):
            build_road(make())


def test_hidden_states_of_other_shapes_are_refused() -> None:
    heads = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
    text = Gemma3nTextConfig(
        **{**heads, "num_hidden_layers": 4},
        head_dim=8,
        sliding_window=6,
        vocab_size_per_layer_input=128,
        hidden_size_per_layer_input=8,
        altup_num_inputs=4,
        laurel_rank=4,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
    )
    streams = DeepseekV4ForCausalLM(DeepseekV4Config(**{**SIZES, "max_position_embeddings": 64}))
    for model in (Gemma3nForCausalLM(text), streams):
        road = trained(model.eval())
        with pytest.raises(
            RoadError,
            match=r"gives hidden states of shape .*4.*: expected \[rows, columns, width\], so \(2, 9, 32\)",
        ):
            road(input_ids=IDS, compose="a")
    with pytest.raises(
        RoadError, match=r"XLNetLMHeadModel has hidden states \[columns, rows, width\]"
    ):
        RoadModel(
            XLNetLMHeadModel(
                XLNetConfig(vocab_size=128, d_model=32, n_layer=3, n_head=4, d_inner=48)
            ),
            RoadIntervention(layer=1),
        )


def test_components_that_are_not_what_their_name_says_are_refused() -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=128, hidden_size=32, n_layer=3, n_head=4))
    mpt = MptForCausalLM(MptConfig(vocab_size=128, d_model=32, n_layers=3, n_heads=4))
    bert = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True))
    for model, component in (
        (bloom, "attention_output"),
        (bloom, "mlp_output"),
        (mpt, "mlp_output"),
        (bert, "attention_output"),
    ):
        with pytest.raises(
            RoadError,
            match="adds the residual stream inside: its output is no .*try 'block_output'",
        ):
            RoadModel(model, RoadIntervention(layer=1, component=component))
        RoadModel(model, RoadIntervention(layer=1))
    with pytest.raises(RoadError, match="layer 1 of BertLMHeadModel has no mlp_output: looked for"):
        RoadModel(bert, RoadIntervention(layer=1, component="mlp_output"))


def test_layers_that_are_skipped_are_told() -> None:
    """An edit whose module does not run can't act."""
    model: Any = build("llama")
    road = trained(model)
    model.model.config.num_hidden_layers = 1  # transformers' early exit
    try:
        with pytest.raises(
            RoadError, match="layers.1 did not run in this pass, so the edit at layer 1 did not act"
        ):
            road(input_ids=IDS, compose="a")
    finally:
        model.model.config.num_hidden_layers = LAYERS

    class Bypassing(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.inner.weight.T

    outer = Bypassing(WIDTH, WIDTH)
    outer.inner = torch.nn.Linear(WIDTH, WIDTH)
    model.model.layers[1].self_attn.o_proj = outer
    named = roadint.add_linear_road(model, name="x", targets=["o_proj.inner", "up_proj"])
    with pytest.raises(
        RoadError,
        match=r"o_proj.inner did not run: the model uses its weights without calling it.*exclude=\['inner'\]",
    ):
        named(input_ids=IDS, compose="x")


def test_rows_that_are_not_the_batchs_are_told(llama: PreTrainedModel) -> None:
    road = trained(llama)
    layer = find_layers(llama)[1][1]
    handle = layer.register_forward_pre_hook(
        lambda module, args: (args[0][:1], *args[1:])
    )  # fewer rows than the batch has
    with pytest.raises(RoadError, match=r"shape \(1, 9, 32\)"):
        road(input_ids=IDS, compose="a", use_cache=False)
    handle.remove()
    with pytest.raises(RoadError, match="PeftModel puts virtual tokens before each prompt"):
        prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        RoadModel(peft.get_peft_model(build("llama"), prompts), RoadIntervention(layer=1))


def test_routers_and_gates_are_no_targets() -> None:
    sizes = {**SIZES, "num_key_value_heads": 2}
    models = {
        "Llama4ForCausalLM": transformers.Llama4TextConfig(
            **sizes,
            head_dim=8,
            intermediate_size_mlp=48,
            num_local_experts=2,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
        ),
        "PhimoeForCausalLM": transformers.PhimoeConfig(**sizes, num_local_experts=4),
        "Qwen2MoeForCausalLM": transformers.Qwen2MoeConfig(
            **sizes,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
    }
    for name, config in models.items():
        torch.manual_seed(0)
        model = scaled(getattr(transformers, name)(config), 2)
        road = roadint.add_linear_road(model, name="a")
        paths = road.adapters["a"].layout.paths
        assert not any(path.endswith(("router", "gate")) for path in paths)
        assert any(path.endswith("q_proj") for path in paths)
        randomised(road.adapters["a"], 3)
        live = road(input_ids=IDS, compose="a").logits
        assert not torch.allclose(live, model(input_ids=IDS).logits, atol=1e-2)
        with road.merged("a") as plain:
            torch.testing.assert_close(plain(input_ids=IDS).logits, live, rtol=0, atol=2e-3)
    gate = [path for path, _ in model.named_modules() if path.endswith("shared_expert_gate")]
    with pytest.raises(
        RoadError,
        match=r"has the odd width 1: .* leave all 3 such out with exclude=\['shared_expert_gate'\]",
    ):
        roadint.add_linear_road(model, name="b", targets=[*gate, "q_proj"])


@pytest.mark.parametrize("kind", ["Mamba", "Jamba", "SigLIP"])
def test_layers_that_are_used_without_being_called_are_left_out(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "Mamba":
        config: Any = transformers.MambaConfig(
            vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=8
        )
        model, inputs = transformers.MambaForCausalLM(config), {"use_cache": False}
    elif kind == "Jamba":
        moe = {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
        }
        config = transformers.JambaConfig(
            **SIZES, **moe, num_key_value_heads=2, mamba_d_state=8, use_mamba_kernels=False
        )
        model, inputs = transformers.JambaForCausalLM(config), {"use_cache": False}
    else:
        tower = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        config = transformers.SiglipConfig(
            text_config={**tower, "vocab_size": 128, "max_position_embeddings": 16},
            vision_config={**tower, "image_size": 28, "patch_size": 14},
        )
        model, inputs = (
            transformers.SiglipModel(config),
            {"pixel_values": torch.randn(2, 3, 28, 28)},
        )
    road = roadint.add_linear_road(scaled(model, 3), name="a")
    assert not any(path.endswith("dt_proj") for path in road.adapters["a"].layout.paths)
    randomised(road.adapters["a"], 3)
    live = road(compose="a", input_ids=IDS, **inputs)
    with road.merged("a") as plain:
        merged = plain(input_ids=IDS, **inputs)
    name = "logits_per_image" if kind == "SigLIP" else "logits"
    torch.testing.assert_close(getattr(live, name), getattr(merged, name), rtol=0, atol=1e-3)
    if kind == "Mamba":
        road.add_adapter("b", targets=["dt_proj"])
        with pytest.raises(
            RoadError, match=r"dt_proj did not run: the model uses its weights without calling it"
        ):
            road(compose="b", input_ids=IDS, **inputs)


def test_paths_and_devices_inside_wrappers(llama: PreTrainedModel) -> None:
    wrapped = peft.get_peft_model(
        build("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    assert site_path(wrapped, 1, "mlp_output") == "base_model.model.model.layers.1.mlp"
    assert inner_model(wrapped) is wrapped.base_model.model
    road = roadint.add_linear_road(wrapped, name="a")
    assert not any("lora_" in path for path in road.adapters["a"].layout.paths)
    assert inner_model(torch.compile(llama, backend="eager")) is llama
    assert device_of(llama) == torch.device("cpu")


def test_a_compiled_language_model_inside_another_is_found() -> None:
    model = llava()
    before = [decoder_of(model)[0], find_layers(model)[0], find_targets(model).paths]
    inner = model.model
    inner.language_model = torch.compile(inner.language_model, backend="eager")
    assert [decoder_of(model)[0], find_layers(model)[0], find_targets(model).paths] == before


def test_what_comes_after_the_body() -> None:
    for model, after, before in (
        (llava(), "lm_head", "model.multi_modal_projector"),
        (build("llama"), "lm_head", "model.embed_tokens"),
        (encoder(), "classifier", "bert.embeddings"),
    ):
        assert is_after(model, after)
        assert not is_after(model, before)
