"""What transformers' Trainer and pipelines ask of a model beyond its forward: answered by the model that the roads lie on, or
refused, so that nothing that they do runs beside the edits."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn

from roadint.errors import RoadError

_F = TypeVar("_F", bound=Callable[..., Any])


class Hosted(nn.Module):
    """A model around another one, `model`, that answers for it where a host asks."""

    @property
    def config(self) -> Any:
        """The model's own configuration."""
        return self._own("config")

    @property
    def generation_config(self) -> Any:
        """How the model generates where nothing else is said."""
        return self._own("generation_config")

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self._modules["model"].generation_config = value  # type: ignore[union-attr]

    @property
    def dtype(self) -> torch.dtype:
        """The model's own."""
        return cast(torch.dtype, self._own("dtype"))

    @property
    def hf_device_map(self) -> Any:
        """Where accelerate put the parts of the model."""
        return self._own("hf_device_map")

    @property
    def main_input_name(self) -> str:
        """The argument that holds the input."""
        return str(self._own("main_input_name"))

    @property
    def loss_type(self) -> Any:
        """Which loss the model computes: Trainer counts labels by it."""
        return self._own("loss_type")

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the model's loss divides by the number of labels that it is given (num_items_in_batch)."""
        said = getattr(self._modules["model"], "accepts_loss_kwargs", None)
        if said is not None:
            return bool(said)
        arguments = inspect.signature(
            cast(nn.Module, self._modules["model"]).forward
        ).parameters.values()
        return any(each.kind is each.VAR_KEYWORD for each in arguments)

    @property
    def input_modalities(self) -> Any:
        """What the model takes."""
        return self._own("input_modalities")

    @property
    def output_modalities(self) -> Any:
        """What the model gives."""
        return self._own("output_modalities")

    def can_generate(self) -> bool:
        """Whether the model generates."""
        return bool(getattr(self._modules["model"], "can_generate", bool)())

    def get_input_embeddings(self) -> nn.Module:
        """Refused: noise on them (NEFTune) would not act in a model that stays in its own mode. See `model`."""
        raise RoadError(
            "a RoadModel lends no embeddings, and noise on them (neftune_noise_alpha) does not act on a frozen model: "
            "expected neftune_noise_alpha=None; road.model.get_input_embeddings() has them"
        )

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Refused: layers that are computed again would be so without the edit."""
        raise RoadError(
            "gradient checkpointing computes the layers again in the backward pass, without the edit: expected "
            "gradient_checkpointing=False (activation_checkpointing=False)"
        )

    gradient_checkpointing_enable = activation_checkpointing_enable

    def _get_name(self) -> str:
        """The model's kind, by which Trainer's label smoothing tells whether labels are shifted."""
        return type(self._modules.get("model")).__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__}{super().__repr__().removeprefix(self._get_name())}"

    def _own(self, name: str) -> Any:
        found = getattr(self._modules["model"], name, self)
        if found is self:
            raise AttributeError(f"{self._get_name()} has no {name}")
        return found


class _Bound(functools.partial[Any]):
    """A forward of one instance, whose signature also has the arguments of the model beneath."""

    @property
    def __signature__(self) -> inspect.Signature:
        own = inspect.signature(self.func).parameters
        beneath = [
            parameter
            for parameter in inspect.signature(self.args[0].model.forward).parameters.values()
            if parameter.name not in own and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        said = [each for each in own.values() if each.kind in (each.KEYWORD_ONLY, each.VAR_KEYWORD)]
        return inspect.Signature([*beneath, *said])


class _Forward:
    """A method that shows the arguments of the instance's model as its own: Trainer keeps the columns that a forward names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__doc__ = function.__doc__
        self.function = function
        shown = inspect.signature(function)
        labels = inspect.Parameter("labels", inspect.Parameter.KEYWORD_ONLY, default=None)
        *rest, keywords = shown.parameters.values()
        # What Trainer asks of the class: what the labels are called.
        function.__signature__ = shown.replace(parameters=[*rest, labels, keywords])  # type: ignore[attr-defined]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self.function if instance is None else _Bound(self.function, instance)


def shows_model_arguments(function: _F) -> _F:
    """Decorates a forward that passes its keyword arguments, `**inputs`, on to `self.model`."""
    return cast(_F, _Forward(function))


def as_tokens(first: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` by name, as transformers' own takes them. Raises RoadError where none are tokens."""
    given = dict(given)
    if first is not None:
        given["inputs"] = first
    if given.get("inputs") is not None:
        given["input_ids"] = given.pop("inputs")
    if not any(torch.is_tensor(given.get(name)) for name in ("input_ids", "inputs_embeds")):
        raise RoadError(
            "generate takes tokens, generate(input_ids=…), as tokenizer(prompt, return_tensors='pt') gives them; "
            "for texts: answer(tokenizer, prompts)"
        )
    return given
