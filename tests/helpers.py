"""What the tests share: tiny models and a tokenizer built without a download, adapters of known values, the command line."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
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
from roadint import RoadModel
from roadint.adapters.adapter import RoadAdapter
from roadint.checkpoint.format import CONFIG, TENSORS
from roadint.cli.main import main

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
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=4,
            n_positions=256,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}
VARIANTS: list[Any] = ["road_1", "road_2", "road_4"]
IDS = torch.randint(3, 100, (4, 6), generator=torch.Generator().manual_seed(0))
STEPS = ("open", "fsync", "link", "replace", "unlink")
HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}
SHORT = {
    "rows": 12,
    "max_completion": 8,
    "epochs": 2,
    "batch_size": 4,
    "lr": 5e-2,
    "template": "plain",
    "quiet": True,
    "eos": [],
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
    listed = interventions or (
        roadint.RoadIntervention(layer=1, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"}),
    )
    road = roadint.RoadModel(model, listed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for intervention in road.interventions:
            intervention.theta.copy_(2 * torch.randn(intervention.theta.shape, generator=generator))
            intervention.alpha.copy_(
                torch.rand(intervention.alpha.shape, generator=generator) + 0.5
            )
    return road


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, with <pad>, <bos> (added to every text) and <eos>."""
    from tokenizers.processors import TemplateProcessing

    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {
        "<pad>": 0,
        "<bos>": 1,
        "<eos>": 2,
        "<unk>": 3,
        **{c: i + 4 for i, c in enumerate(characters)},
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def write_tsv(path: Path, header: str, rows: list[str]) -> str:
    path.write_text("\ufeff" + "\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def scaled(model: PreTrainedModel, by: float = 4) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(by)
    return model.eval()


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """In this process, which is quicker."""
    monkeypatch.setattr(sys, "argv", ["roadint", *arguments])
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def randomised(adapter: RoadAdapter, seed: int = 1) -> RoadAdapter:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        adapter.theta.normal_(0, 0.5, generator=generator)
        adapter.alpha.uniform_(0.7, 1.3, generator=generator)
        if adapter.lora_rank:
            adapter.lora_b.normal_(0, 0.3, generator=generator)
    return adapter


def with_adapters(model: PreTrainedModel, *names: str, **arguments: Any) -> RoadModel:
    road = RoadModel(model)
    for seed, name in enumerate(names):
        randomised(road.add_adapter(name, **arguments), seed)
    return road.eval()


def by_hand(model: PreTrainedModel, matrices: dict[str, Tensor], **inputs: Any) -> Any:
    """With dense matrices on the outputs of modules."""
    handles = [
        model.get_submodule(path).register_forward_hook(lambda m, a, output, r=r: output @ r.T)
        for path, r in matrices.items()
    ]
    try:
        return model(**inputs)
    finally:
        for handle in handles:
            handle.remove()


def dense(adapter: RoadAdapter, strength: float = 1.0) -> dict[str, Tensor]:
    from roadint.rotation.rotation import rotation

    found = {}
    for path, width, group in zip(
        adapter.layout.paths, adapter.layout.widths, adapter.groups, strict=True
    ):
        theta, alpha = adapter.of(path)
        assert len(theta) == width // 2
        found[path] = (
            rotation(theta, alpha, strength, variant=adapter.variant, group=group).dense().detach()
        )
    return found


def encoder() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval()


def counted(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], Any]) -> list[str]:
    """Call `act` in the place of the file operation number `at`; returns the operations so far, as they come."""
    done: list[str] = []
    for name in STEPS:
        real = getattr(os, name)

        def step(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) - 1 == at:
                act()
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, step)
    return done


def resign(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change the JSON and give it the SHA-256 that goes with it, as anybody can."""
    config = json.loads((folder / CONFIG).read_text())
    config.pop("sha256")
    change(config)
    described = json.dumps(config, sort_keys=True).encode()
    config["sha256"] = hashlib.sha256(
        described + b"\0" + (folder / TENSORS).read_bytes()
    ).hexdigest()
    (folder / CONFIG).write_text(json.dumps(config))


def prompts(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def padded(rows: list[Tensor], side: str) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids, mask = (
        torch.zeros(len(rows), longest, dtype=torch.long),
        torch.zeros(len(rows), longest, dtype=torch.long),
    )
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def own(logits: Tensor, row: Tensor, side: str) -> Tensor:
    return logits[-len(row) :] if side == "left" else logits[: len(row)]


def check_drawn(picture: Path) -> None:
    """Not a blank page: several colours, of which none fills it."""
    pixels = imread(picture)[..., :3].reshape(-1, 3)
    colours, counts = np.unique((15 * pixels).round(), axis=0, return_counts=True)
    assert len(colours) > 20, f"{len(colours)} colours"
    assert counts.max() < 0.98 * len(pixels), f"{counts.max() / len(pixels):.1%} of one colour"


def rows(output: str, count: int = 12) -> list[dict[str, str]]:
    return [{"instruction": f"say {index}", "output": output} for index in range(count)]
