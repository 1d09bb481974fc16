"""Tiny models of every architecture, built without a download, and a tokenizer of characters."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.helpers import ARCHITECTURES, build, make_tokenizer, write_tsv

settings.register_profile("roadint", deadline=None)  # a busy machine is no failure
settings.load_profile("roadint")
torch.set_num_threads(1)  # tiny models are quicker without hand-over between threads


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws is the same in every run, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return build("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> str:
    """A folder with a tiny Gemma 3 and its tokenizer, as the command line takes a model."""
    folder = tmp_path_factory.mktemp("base")
    build("gemma3").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> str:
    """A folder with a tiny BERT and a tokenizer."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    model = BertForSequenceClassification(
        BertConfig(vocab_size=128, max_position_embeddings=64, **sizes)
    )
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
        name: write_tsv(folder / f"{name}.tsv", "sentence\tlabel", rows(count))
        for name, count in {"train": 96, "dev": 60}.items()
    }
