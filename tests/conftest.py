"""Tiny models of every architecture, built without a download, and a tokenizer of characters."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import roadint

settings.register_profile("roadint", deadline=None)  # a busy machine is no failure
settings.load_profile("roadint")
torch.set_num_threads(1)  # tiny models are quicker without hand-over between threads
VOCABULARY, WIDTH, LAYERS = 128, 32, 3
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=6,
            layer_types=["sliding_attention"] * 2 + ["full_attention"],
        )
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}


def build(architecture: str = "llama") -> PreTrainedModel:
    """A tiny model in float32 whose logits differ visibly between tokens."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def trained(model: PreTrainedModel, *interventions: roadint.RoadIntervention) -> roadint.RoadModel:
    """A RoadModel with large random rotations, as if trained; halves named a and b at layer 1 by default."""
    listed = interventions or (roadint.RoadIntervention(layer=1, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}),)
    road = roadint.RoadModel(model, listed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for intervention in road.interventions:
            intervention.theta.copy_(2 * torch.randn(intervention.theta.shape, generator=generator))
            intervention.alpha.copy_(torch.rand(intervention.alpha.shape, generator=generator) + 0.5)
    return road


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return build("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, with <pad>, <bos> (added to every text) and <eos>."""
    from tokenizers.processors import TemplateProcessing

    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, **{c: i + 4 for i, c in enumerate(characters)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> str:
    """A folder with a tiny Gemma 3 and its tokenizer, as the command line takes a model."""
    folder = tmp_path_factory.mktemp("base")
    build("gemma3").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_tsv(path: Path, header: str, rows: list[str]) -> str:
    path.write_text("\ufeff" + "\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> str:
    """A folder with a tiny BERT and a tokenizer."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = BertForSequenceClassification(BertConfig(vocab_size=128, max_position_embeddings=64, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Rows in SST-2's form, whose label is whether a "!" is in them."""
    folder = tmp_path_factory.mktemp("sst2")
    draw = np.random.default_rng(0)

    def rows(count: int) -> list[str]:
        found = []
        for _ in range(count):
            label = int(draw.integers(2))
            letters = "".join(draw.choice(list("abcdef"), 6))
            found.append(f"{letters}{'!!' if label else '..'}\t{label}")
        return found

    return {
        name: write_tsv(folder / f"{name}.tsv", "sentence\tlabel", rows(count)) for name, count in {"train": 96, "dev": 60}.items()
    }
