"""What `roadint bench serve` serves: prompts, random checkpoints and LoRAs, compositions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from roadint.adapters.targets import Layout, find_targets
from roadint.architecture.layers import text_config
from roadint.errors import RoadError, first_line, quoted
from roadint.interop.peft.files import CONFIG, PREFIX, TENSORS
from roadint.interventions.road import RoadIntervention
from roadint.model.pretrained import source_of
from roadint.model.road_model import RoadModel

RANK = 8
SUBSPACES: Mapping[int, Mapping[str, str]] = {
    1: {"a": "[0, d)"},
    3: {"a": "[0, d/4)", "b": "[d/4, d/2)", "c": "[d/2, d)"},
}
"""How many subspaces a layer has → the subspaces."""
LABELS = {1: "one", 3: "three"}
"""How many subspaces a layer has → the label of its checkpoint."""

_LORAS = 8  # different ones on the disk; requests have as many as they ask for, loaded one by one
_ANGLE, _SCALE = 0.3, 0.1  # how far a random rotation is from the identity
_GOLDEN = 0.6180339887498949
_LOWEST_ID = 10  # of random tokens


@dataclass(frozen=True)
class ServeJob:
    """What is served to whom.

    Args:
        model: Hub id, folder or short name.
        requests: How many requests come at once.
        prompt_tokens: The length of their prompts, whose first halves are the same tokens.
        new_tokens: The length of every answer.
        dtype: The dtype of the model, as vLLM takes it.
        layer: The layer whose hidden states are edited, from 0; the middle one by default.
        phase: Which tokens are edited: the prompt's last one ("prompt"), or all that is generated
            after it, too ("both").
        compiled: Whether vLLM compiles the model, and captures graphs on a GPU.
        engine: Further arguments of vLLM's engine.
    """

    model: str
    requests: int = 256
    prompt_tokens: int = 64
    new_tokens: int = 32
    dtype: str = "auto"
    layer: int | None = None
    phase: str = "both"
    compiled: bool = False
    engine: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Inputs:
    """What a job needs, made once for all engines.

    Args:
        source: The folder or hub id of the model.
        prompts: The ids of the tokens of every request.
        hidden: Label → the folder of a checkpoint with edits of hidden states.
        adapters: Label → the folder of a checkpoint with adapters.
        loras: The folders of LoRAs.
        token_bytes: The memory of a token in the cache of keys and values.
    """

    source: str
    prompts: Sequence[Sequence[int]]
    hidden: Mapping[str, str]
    adapters: Mapping[str, str]
    loras: Sequence[str]
    token_bytes: int


def make_inputs(job: ServeJob, folder: Path) -> Inputs:
    """Write the checkpoints of a job, and draw its prompts.

    Args:
        job: The job.
        folder: Where to.

    Raises:
        RoadError: where there is no such model, or it has no such layer.
    """
    source = source_of(job.model)
    model = model_without_weights(source)
    config = text_config(model)
    layer = config.num_hidden_layers // 2 if job.layer is None else job.layer
    hidden, adapters = {}, {}
    for count, label in LABELS.items():
        hidden[label] = _save(_edited(model, layer, count, job.phase), folder / f"hidden-{label}")
        adapters[label] = _save(_adapted(model, count), folder / f"adapters-{label}")
    layout = find_targets(model)
    loras = [_write_lora(layout, folder / f"lora-{seed}", seed) for seed in range(_LORAS)]
    dtype = str(config.dtype).removeprefix("torch.") if job.dtype == "auto" else job.dtype
    size = 2 if dtype in ("bfloat16", "float16") else 4
    return Inputs(
        source,
        random_prompts(job, config.vocab_size),
        hidden,
        adapters,
        loras,
        token_numbers(config) * size,
    )


def model_without_weights(source: str) -> nn.Module:
    """A model of transformers on the device "meta": its modules and their sizes.

    Args:
        source: A folder or a hub id.

    Raises:
        RoadError: where there is no such model.
    """
    make: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model: Any = make.from_config(AutoConfig.from_pretrained(source))
    except Exception as error:  # whatever the hub, the network or the configuration raise
        raise RoadError(f"model {quoted(source)} can't be read ({first_line(error)})") from error
    model.name_or_path = source
    return model.eval()  # type: ignore[no-any-return]


def random_prompts(job: ServeJob, vocabulary: int) -> list[list[int]]:
    """Draw the tokens of the requests, whose first halves are the same."""
    draw = torch.Generator().manual_seed(0)
    size = (job.requests, job.prompt_tokens)
    ids = torch.randint(_LOWEST_ID, vocabulary, size, generator=draw)
    half = job.prompt_tokens // 2
    ids[:, :half] = ids[0, :half]
    return ids.tolist()


def token_numbers(config: Any) -> int:
    """How many numbers the cache of keys and values has for a token.

    Args:
        config: The configuration of a language model.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * int(heads) * int(head)


def compositions(
    count: int, requests: int, subspaces: int, first: int = 0
) -> list[str] | list[None]:
    """The compositions of requests that come together: so many different ones, in turns.

    Args:
        count: How many different ones; 0 for requests that are not edited.
        requests: How many requests.
        subspaces: How many subspaces of a layer act.
        first: The number of the first composition: each number has a composition of its own.

    Examples:
        >>> compositions(2, 3, 1)
        ['0.500000*a@one', '1.118034*a@one', '0.500000*a@one']
    """
    if not count:
        return [None] * requests
    different = [_composition(first + number, subspaces) for number in range(count)]
    return [different[number % count] for number in range(requests)]


def _composition(number: int, subspaces: int) -> str:
    strength = 0.5 + (number * _GOLDEN) % 1  # multiples of it are far apart, however many there are
    strengths = (strength, 2 - strength, strength)
    label, names = LABELS[subspaces], SUBSPACES[subspaces]
    return " + ".join(
        f"{factor:.6f}*{name}@{label}" for name, factor in zip(names, strengths, strict=False)
    )


def _edited(model: nn.Module, layer: int, count: int, phase: str) -> RoadModel:
    edit = RoadIntervention(
        layer=layer,
        position="last",
        phase=phase,  # type: ignore[arg-type]
        subspaces=SUBSPACES[count],
    )
    return RoadModel(model, edit)


def _adapted(model: nn.Module, count: int) -> RoadModel:
    road = RoadModel(model)
    for name, subspace in SUBSPACES[count].items():
        road.add_adapter(name, subspace=subspace)
    return road


def _save(road: RoadModel, folder: Path) -> str:
    """Save random rotations; how fast they are does not depend on the values."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in road.trained_parameters():
            far = _SCALE if bool(parameter.any()) else _ANGLE
            parameter.add_(far * torch.randn(parameter.shape, generator=draw))
    road.save_pretrained(folder)
    return str(folder)


def _write_lora(layout: Layout, folder: Path, seed: int) -> str:
    """Write a random LoRA of all targets in PEFT's format."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, outputs, inputs in zip(layout.paths, layout.widths, layout.inputs, strict=True):
        for name, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
            values = torch.randn(shape, generator=draw) / inputs**0.5
            tensors[f"{PREFIX}{path}.{name}.weight"] = values.bfloat16()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 4 * RANK,
        "bias": "none",
        "target_modules": sorted({path.rpartition(".")[2] for path in layout.paths}),
    }
    folder.mkdir(parents=True)
    safetensors.torch.save_file(tensors, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(config))
    return str(folder)
