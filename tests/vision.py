"""Tiny vision-language models, of random weights, and their processors, without a download."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    SiglipVisionConfig,
)

from tests.helpers import SIZES, make_tokenizer, scaled

IMAGE, SIDE, PATCHES = 120, 8, 4  # an image's token, its pixels a side, and its tokens
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 4,
}


def llava(**text: Any) -> PreTrainedModel:
    """A CLIP's tower, a projector and a Llama."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, projection_dim=24),
        text_config=LlamaConfig(**{**SIZES, **text}, num_key_value_heads=2),
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
    )
    return scaled(LlavaForConditionalGeneration(config), 5)


def gemma3() -> PreTrainedModel:
    """A SigLIP's tower, a projector and a Gemma 3, in which the tokens of an image see each other."""
    torch.manual_seed(0)
    text = Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention"] * 2 + ["full_attention"],
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**TOWER),
        mm_tokens_per_image=PATCHES,
        image_token_index=IMAGE,
        boi_token_index=118,
        eoi_token_index=119,
    )
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # where the weights of the projector are new, they are 0
        model.model.multi_modal_projector.mm_input_projection_weight.normal_()
    return scaled(model, 5)


MODELS = {"llava": llava, "gemma3": gemma3}


def image(seed: int, width: int = 11, height: int = 9) -> Image.Image:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def inputs_of(model: PreTrainedModel, counts: list[int], side: str = "left") -> dict[str, Tensor]:
    """Rows of different lengths, with so many images each, whose tokens stand at different places."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index, count in enumerate(counts):
        words = torch.randint(3, 100, (4 + 3 * index,), generator=generator).tolist()
        seen = [118, *[IMAGE] * PATCHES, 119] * count
        rows.append([*words[: 1 + index], *seen, *words[1 + index :]])
    longest = max(map(len, rows))
    left = side == "left"
    ids = [
        [0] * (longest - len(row)) * left + row + [0] * (longest - len(row)) * (not left)
        for row in rows
    ]
    tokens = torch.tensor(ids)
    inputs = {"input_ids": tokens, "attention_mask": (tokens != 0).long()}
    if sum(counts):
        inputs["pixel_values"] = torch.randn(sum(counts), 3, SIDE, SIDE, generator=generator)
    if isinstance(model, Gemma3ForConditionalGeneration):
        inputs["token_type_ids"] = (tokens == IMAGE).long()
    return inputs


def alone(inputs: dict[str, Tensor], counts: list[int], row: int) -> dict[str, Tensor]:
    """One row of a batch, without padding, with its own images."""
    kept = inputs["attention_mask"][row].bool()
    start = sum(counts[:row])
    found = {}
    for name, values in inputs.items():
        if name != "pixel_values":
            found[name] = values[row : row + 1, kept]
        elif counts[row]:
            found[name] = values[start : start + counts[row]]
    return found


TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def processor() -> LlavaProcessor:
    """That of the tiny LLaVA, whose tokenizer has a token for each character."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{index}>" for index in range(len(tokenizer), IMAGE)])
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def save_llava(folder: Path) -> str:
    """A folder with a tiny LLaVA and its processor, as AutoProcessor and the command line take it."""
    llava().save_pretrained(folder)
    processor().save_pretrained(folder)
    return str(folder)


def rows_with_images(folder: Path, count: int = 6) -> list[dict[str, Any]]:
    """Rows in LLaVA's form, of one question or two, of text alone, and in roadint's form."""
    rows: list[dict[str, Any]] = []
    for index in range(count):
        image(index, 9 + index, 14 - index).save(folder / f"{index}.png")
        asked = {"from": "human", "value": f"<image>\nwhat {index}?"}
        said = [asked, {"from": "gpt", "value": "a" * (index + 2)}]
        said += [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}] * (index % 2)
        rows.append({"id": index, "image": f"{index}.png", "conversations": said})
    rows.append(
        {"conversations": [{"from": "human", "value": "no"}, {"from": "gpt", "value": "b"}]}
    )
    both = ["0.png", "1.png"]
    rows.append({"image": both, "instruction": "these?", "input": "both", "output": "bb"})
    return rows
