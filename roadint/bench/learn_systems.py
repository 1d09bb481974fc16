"""The other methods of `roadint bench learn`: PEFT's layers, or a head alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from roadint.adapters.targets import find_targets
from roadint.bench.peft_library import import_peft
from roadint.engines.transformers.scoring import score
from roadint.recipes.recipe import Recipe

_CONFIGS: dict[str, Callable[[Any, Sequence[str]], Any]] = {
    "lora": lambda peft, paths: peft.LoraConfig(r=8, lora_alpha=16, target_modules=paths),
    "ia3": lambda peft, paths: peft.IA3Config(target_modules=paths, feedforward_modules=[]),
}


class PeftMethod(torch.nn.Module):
    """A model with another method's layers, called as a RoadModel is.

    Args:
        model: The base model, whose parameters are frozen.
        method: "lora" or "ia3", whose layers PEFT adds; any other name adds none.
        recipe: The recipe, with the targets of the layers, and with heads, which train whole.
    """

    def __init__(self, model: PreTrainedModel, method: str, recipe: Recipe) -> None:
        super().__init__()
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        targets = find_targets(model, recipe.edit.targets, recipe.edit.exclude, recipe.edit.layers)
        if method in _CONFIGS:
            peft = import_peft()
            peft.inject_adapter_in_model(_CONFIGS[method](peft, list(targets.paths)), model)
        for path in recipe.edit.heads:
            model.get_submodule(path).requires_grad_()

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def forward(
        self, *, _scored: Any = None, compose: Any = None, prompt_length: Any = None, **inputs: Any
    ) -> Any:
        """The model's own forward, or its loss where tokens are to be scored."""
        if _scored is None:
            return self.model(**inputs)
        return score(self.model, inputs, *_scored, plain=self.model)

    def train(self, mode: bool = True) -> "PeftMethod":
        """Keep the model's own mode, as a RoadModel does."""
        self.training = mode
        return self

    def generate(self, **inputs: Any) -> Any:
        """The model's own `generate`."""
        return self.model.generate(**inputs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state of trained parameters alone."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name in trained}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` returned."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        return type(result)([], result.unexpected_keys)
