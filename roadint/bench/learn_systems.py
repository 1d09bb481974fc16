"""The other methods of `roadint bench learn`: PEFT's layers, LoReFT, or the model's own weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from roadint.adapters.targets import find_targets
from roadint.architecture.layers import find_layers
from roadint.bench.learn_methods import Method
from roadint.bench.peft_library import boft_config, import_peft, inject, oft_config
from roadint.engines.transformers.scoring import score
from roadint.errors import RoadError
from roadint.interventions.loreft import LoreftIntervention
from roadint.model.road_model import RoadModel
from roadint.recipes.recipe import Recipe

LORA_SCALE = 2  # lora_alpha over the rank, as usual
_BOFT_BLOCK = 4  # the least that PEFT takes for several butterflies; it runs one without a GPU
# pyreft's positions: of an encoder the first tokens, which its head reads (GLUE); else as many at
# both ends of the prompt, with weights of their own (commonsense reasoning).
_FIRST_OF_ENCODER, _ENDS_OF_PROMPT = ("first(3)",), ("first(7)", "last(7)")

_CONFIGS: dict[str, Callable[[Any, Sequence[str], Any], Any]] = {
    "lora": lambda peft, paths, rank: _lora(peft, paths, rank),
    "dora": lambda peft, paths, rank: _lora(peft, paths, rank, use_dora=True),
    "ia3": lambda peft, paths, rank: peft.IA3Config(target_modules=paths, feedforward_modules=[]),
    "oft": lambda peft, paths, rank: oft_config(peft, paths, 2),
    "boft": lambda peft, paths, rank: boft_config(peft, paths, _BOFT_BLOCK),
}
_OWN = ("bitfit", "full")  # train weights of the model itself


def system_of(method: Method, model: PreTrainedModel, recipe: Recipe) -> tuple[Any, int]:
    """A model that a method finetunes: a RoadModel, or an `OtherMethod`.

    Args:
        method: The method.
        model: The base model, whose parameters are frozen where the method does not train them.
        recipe: The recipe, with the targets of layers, and with heads, which train whole.

    Returns:
        The system, and how many numbers its heads have.

    Raises:
        RoadError: where the method has nothing to train in this model.
    """
    if not method.family.startswith("road"):
        system = OtherMethod(model, method, recipe)
        return system, system.head_size
    model.requires_grad_(False)
    variant, rank = method.family.removesuffix("+lora"), method.rank or 0
    lora = {"lora_rank": rank, "lora_alpha": float(LORA_SCALE * rank) if rank else None}
    road = recipe.override({"variant": variant, **lora}).on(model)
    heads = [head for adapter in road.adapters.values() for head in adapter.heads]
    return road, sum(value.numel() for head in heads for value in head.parameters())


class OtherMethod(nn.Module):
    """A model that another method finetunes, called as a RoadModel is.

    All trained numbers are float32, as RoAd's are; a model whose own weights train is so as a
    whole.

    Args:
        model: The base model.
        method: Of a family in which PEFT adds layers, "loreft", "bitfit" (all biases), "full" (all
            weights), or "head", and any other, where the recipe's heads train alone.
        recipe: The recipe, with the targets of layers, and with heads, which train whole.

    Raises:
        RoadError: where the method has nothing to train in this model.
    """

    def __init__(self, model: PreTrainedModel, method: Method, recipe: Recipe) -> None:
        super().__init__()
        self.model: Any = model
        self.road: RoadModel | None = None
        model.requires_grad_(False)
        if method.family in _OWN:
            model.float()  # type: ignore[no-untyped-call]
        if method.family in _CONFIGS:
            edit = recipe.edit
            targets = find_targets(model, edit.targets, edit.exclude, edit.layers)
            peft = import_peft()
            inject(_CONFIGS[method.family](peft, list(targets.paths), method.rank), model)
        elif method.family == "loreft":
            self.road = RoadModel(model, _interventions(model, method, recipe))
        elif method.family == "full":
            model.requires_grad_()
        elif method.family == "bitfit":
            for parameter in biases(model):
                parameter.requires_grad_()
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        model.eval()  # type: ignore[no-untyped-call]  # new layers too
        self._heads = [_open(model, path) for path in recipe.edit.heads]

    @property
    def head_size(self) -> int:
        """How many numbers the heads have."""
        return sum(value.numel() for head in self._heads for value in head.parameters())

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def forward(
        self, *, _scored: Any = None, compose: Any = None, prompt_length: Any = None, **inputs: Any
    ) -> Any:
        """The model's own forward, or its loss where tokens are to be scored."""
        if self.road is not None:
            return self.road(_scored=_scored, prompt_length=prompt_length, **inputs)
        if _scored is None:
            return self.model(**inputs)
        return score(self.model, inputs, *_scored, plain=self.model)

    def train(self, mode: bool = True) -> "OtherMethod":
        """Set the mode of what is trained beside the model, which keeps its own, as in RoadModel.

        A RoadModel trains copies of heads, so heads count as beside the model.
        """
        self.training = mode
        if self.road is not None:
            self.road.train(mode)
        for head in self._heads:
            head.train(mode)
        return self

    def generate(self, **inputs: Any) -> Any:
        """The model's own `generate`."""
        return (self.model if self.road is None else self.road).generate(**inputs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state of trained parameters alone, each once."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = super().state_dict(*args, **kwargs)
        # An orthogonal parametrisation has its numbers in columns, which safetensors refuses.
        return {name: value.contiguous() for name, value in state.items() if name in trained}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` returned."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        return type(result)([], result.unexpected_keys)


def biases(model: PreTrainedModel) -> list[nn.Parameter]:
    """All biases of a model, of linear layers and of norms.

    Raises:
        RoadError: where it has none.
    """
    found = [
        parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] == "bias"
    ]
    if not found:
        raise RoadError(
            f"method 'bitfit' trains biases, and {type(model).__name__} has none: expected another "
            "method, or a model with biases such as BERT"
        )
    return found


def _lora(peft: Any, paths: Sequence[str], rank: int, **more: Any) -> Any:
    return peft.LoraConfig(r=rank, lora_alpha=LORA_SCALE * rank, target_modules=paths, **more)


def _interventions(
    model: PreTrainedModel, method: Method, recipe: Recipe
) -> list[LoreftIntervention]:
    """LoReFT's edits: the output of all layers, or the recipe's."""
    count = len(find_layers(model)[1])
    layers = range(count) if recipe.edit.layers is None else recipe.edit.layers
    positions = _FIRST_OF_ENCODER if _looks_ahead(model) else _ENDS_OF_PROMPT
    return [
        LoreftIntervention(layer=layer, position=position, rank=method.rank)
        for layer in layers
        for position in positions
    ]


@torch.no_grad()
def _looks_ahead(model: PreTrainedModel) -> bool:
    """Whether the first token's hidden state depends on the last token, as in an encoder."""
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=next(model.parameters()).device)
    body: Any = model.base_model
    first, second = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return not torch.allclose(first.float(), second.float(), rtol=1e-3, atol=1e-3)


def _open(model: PreTrainedModel, path: str) -> nn.Module:
    """A head whose parameters train, in float32, whatever it is given."""
    head: nn.Module = model.get_submodule(path)
    if any(parameter.dtype != torch.float32 for parameter in head.parameters()):
        head.float().register_forward_pre_hook(_in_float32)
    return head.requires_grad_()


def _in_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if torch.is_tensor(value) else value for value in inputs)
