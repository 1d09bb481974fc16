"""Tiny random models of many architectures, and checkpoints that edit all that can be edited."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def make(model_type: str, folder: Path, **further: Any) -> Any:
    """A model with random weights, biases and norms, in float32, which is saved."""
    config = AutoConfig.for_model(model_type, **SIZES | further)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
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
    """Every component at every kind of position, where RoadModel has the component."""
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
            RoadModel(model, parts)
        except RoadError as error:
            print("transformers:", error)
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
