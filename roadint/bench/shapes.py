"""Models of a known shape with random weights: how fast they run does not depend on the values."""

import copy
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights

from roadint.bench.machine import default_device
from roadint.errors import check_known
from roadint.model.pretrained import load

# Shape → the sizes of a LLaMA.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 128,
    },
}
SHAPES["llama-7b-2-layers"] = {**SHAPES["llama-7b"], "num_hidden_layers": 2}
_POSITIONS, _SPREAD = 8192, 0.02
_DRAWN = (1 << 22) + 1  # odd, so that the rows of no matrix repeat
_Module = TypeVar("_Module", bound=nn.Module)


def random_model(
    shape: str, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None
) -> PreTrainedModel:
    """Make a LLaMA with random weights, on its device from the start.

    Args:
        shape: A name in SHAPES.
        dtype: The dtype of the weights.
        device: Where to; a GPU by default, where there is one.

    Returns:
        The model, whose weights are frozen.

    Raises:
        RoadError: for an unknown shape.
    """
    check_known("shape", shape, SHAPES)
    where = device or default_device()
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=_POSITIONS)
    make: Any = LlamaForCausalLM
    with where, no_init_weights():
        model: PreTrainedModel = make._from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    # To draw billions of numbers on a CPU would take minutes: the same ones serve again and again.
    drawn = _SPREAD * torch.randn(_DRAWN, generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(where, dtype)
    for index, parameter in enumerate(model.parameters()):
        if parameter.ndim > 1:
            turned = drawn.roll(index * _DRAWN // 1000)
            for piece in torch.split(parameter.data.view(-1), _DRAWN):
                piece.copy_(turned[: len(piece)])
    return model


def model_and_tokenizer(
    name: str, shape: str | None, dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a benchmark: of a shape where one is given, else loaded by its name.

    Args:
        name: Hub id, folder or short name.
        shape: A name in SHAPES, or None.
        dtype: The dtype of the weights; "auto" is bfloat16 for a shape.

    Returns:
        The model and its tokenizer; that of a shape knows the padding alone.

    Raises:
        RoadError: where there is no such model or shape.
    """
    if shape is None:
        return load(name, dtype=dtype)
    chosen = "bfloat16" if dtype == "auto" else dtype
    made = getattr(torch, chosen) if isinstance(chosen, str) else chosen
    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    make: Any = PreTrainedTokenizerFast
    return random_model(shape, made), make(tokenizer_object=words, pad_token="<pad>")


def twin(module: _Module) -> _Module:
    """Copy modules, but not parameters and buffers, which the copy shares.

    Args:
        module: What libraries that change a model's modules are to change.

    Returns:
        The copy.
    """
    shared = {id(value): value for value in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, shared)


def noise(
    *size: int, like: Tensor, seed: int, dtype: torch.dtype | None = None
) -> Float[Tensor, "..."]:
    """Draw standard normal numbers on the CPU: the same ones whatever the device.

    Args:
        size: The shape.
        like: A tensor with the device and, by default, the dtype of the result.
        seed: The seed.
        dtype: Another dtype.

    Returns:
        The numbers.
    """
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return drawn.to(like.device, dtype or like.dtype)


def random_ids(model: PreTrainedModel, rows: int, columns: int, seed: int = 0) -> Tensor:
    """Draw tokens for a model, on its device.

    Args:
        model: The model.
        rows: How many rows.
        columns: How many tokens a row has.
        seed: The seed.

    Returns:
        Ids, [rows, columns], none of the ten lowest.
    """
    embeddings: Any = model.get_input_embeddings()
    highest = int(embeddings.weight.shape[0])
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, highest, (rows, columns), generator=draw)
    return ids.to(next(model.parameters()).device)
