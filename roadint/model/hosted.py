"""What transformers' Trainer and pipelines ask of a model beyond its forward.

A RoadModel passes these questions on to its model, or refuses them where the answer would make
Trainer or a pipeline run the model without the edits.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from roadint.errors import RoadError

if TYPE_CHECKING:
    from typing_extensions import Self

_F = TypeVar("_F", bound=Callable[..., Any])


class Hosted(nn.Module):
    """A wrapper of a model, `model`, that shows the model's properties to Trainer and pipelines.

    Its state_dict and its training mode leave the model out.
    """

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._of_model("config")

    @property
    def generation_config(self) -> Any:
        """The model's default settings of `generate`."""
        return self._of_model("generation_config")

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self._modules["model"].generation_config = value  # type: ignore[union-attr]

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype."""
        return cast(torch.dtype, self._of_model("dtype"))

    @property
    def hf_device_map(self) -> Any:
        """Where accelerate put the parts of the model."""
        return self._of_model("hf_device_map")

    @property
    def main_input_name(self) -> str:
        """The name of the model's first argument."""
        return str(self._of_model("main_input_name"))

    @property
    def loss_type(self) -> Any:
        """The kind of loss that the model computes, by which Trainer counts labels."""
        return self._of_model("loss_type")

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the model's loss divides by a number of labels (num_items_in_batch)."""
        model = cast(nn.Module, self._modules["model"])
        accepts = getattr(model, "accepts_loss_kwargs", None)
        if accepts is not None:
            return bool(accepts)
        parameters = inspect.signature(model.forward).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    @property
    def input_modalities(self) -> Any:
        """The modalities that the model takes."""
        return self._of_model("input_modalities")

    @property
    def output_modalities(self) -> Any:
        """The modalities that the model returns."""
        return self._of_model("output_modalities")

    def can_generate(self) -> bool:
        """Whether the model generates."""
        ask = getattr(self._modules["model"], "can_generate", None)
        return bool(ask and ask())

    def get_input_embeddings(self) -> nn.Module:
        """Refuse: noise on embeddings (NEFTune) does not act in a frozen model.

        Raises:
            RoadError: always; `road.model` has the embeddings.
        """
        raise RoadError(
            "a RoadModel lends no embeddings, and noise on them (neftune_noise_alpha) does not act "
            "on a frozen model: expected neftune_noise_alpha=None; "
            "road.model.get_input_embeddings() has them"
        )

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: layers would be computed again without the edit.

        Raises:
            RoadError: always.
        """
        raise RoadError(
            "gradient checkpointing computes the layers again in the backward pass, without the "
            "edit: expected gradient_checkpointing=False (activation_checkpointing=False)"
        )

    gradient_checkpointing_enable = activation_checkpointing_enable

    def train(self, mode: bool = True) -> "Self":
        """Set the mode of interventions and adapters; the model, which is frozen, keeps its own."""
        self.training = mode
        for name, module in self.named_children():
            if name != "model":
                module.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state of interventions and adapters; the model's is left out."""
        whole: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = f"{kwargs.get('prefix', '')}model."
        for name in [name for name in whole if name.startswith(prefix)]:
            del whole[name]  # in place: a module around this one goes on with it
        return whole

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` returned.

        Raises:
            RoadError: where `strict` and the keys differ.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        if strict and (result.missing_keys or result.unexpected_keys):
            raise RoadError(
                f"state_dict of another {type(self).__name__}: it lacks "
                f"{result.missing_keys or 'nothing'}, and has {result.unexpected_keys}"
            )
        return result

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self._prefix = prefix  # that of a module around this one, for `without_model`
        super()._load_from_state_dict(state_dict, prefix, *args)

    def without_model(self, keys: Any) -> None:
        """Don't miss the model's keys, which `state_dict` leaves out; a hook of torch.

        Args:
            keys: What a state_dict lacks, and has beyond.
        """
        of_model = f"{self._prefix}model."
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(of_model)]

    def _get_name(self) -> str:
        """The model's class: Trainer's label smoothing shifts labels by it."""
        return type(self._modules.get("model")).__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__}{super().__repr__().removeprefix(self._get_name())}"

    def _of_model(self, name: str) -> Any:
        value = getattr(self._modules["model"], name, self)
        if value is self:
            raise AttributeError(f"{self._get_name()} has no {name}")
        return value


class _Bound(functools.partial[Any]):
    """An instance's forward, whose signature also has the arguments of the instance's model."""

    @property
    def __signature__(self) -> inspect.Signature:
        parameters = inspect.signature(self.func).parameters
        beneath = inspect.signature(self.args[0].model.forward).parameters
        wanted = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        of_model = [
            parameter
            for name, parameter in beneath.items()
            if name not in parameters and parameter.kind in wanted
        ]
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        of_road = [parameter for parameter in parameters.values() if parameter.kind in kinds]
        # The order that Python asks for: by position first, the rest of the keywords last.
        ordered = sorted([*of_model, *of_road], key=lambda parameter: parameter.kind)
        return inspect.Signature(ordered)


class _ForwardMethod:
    """A method whose signature has the arguments of the instance's model.

    Trainer keeps those columns of a data set that the signature names, and reads the names of the
    labels from the class.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__doc__ = function.__doc__
        self.function = function
        shown = inspect.signature(function)
        labels = inspect.Parameter("labels", inspect.Parameter.KEYWORD_ONLY, default=None)
        *rest, keywords = shown.parameters.values()
        signature = shown.replace(parameters=[*rest, labels, keywords])
        function.__signature__ = signature  # type: ignore[attr-defined]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self.function if instance is None else _Bound(self.function, instance)


def shows_model_arguments(function: _F) -> _F:
    """Decorate a forward that passes its keyword arguments, `**inputs`, on to `self.model`."""
    return cast(_F, _ForwardMethod(function))


def as_tokens(inputs: Any, generation: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `generate`, with the tokens as "input_ids".

    Raises:
        RoadError: where there are no tokens among them.
    """
    arguments = dict(generation)
    if inputs is not None:
        if arguments.get("input_ids") is not None:
            raise RoadError(
                "input_ids are given twice, by their place (or as inputs) and by their name: "
                "expected them once"
            )
        arguments["input_ids"] = inputs
    if not any(torch.is_tensor(arguments.get(name)) for name in ("input_ids", "inputs_embeds")):
        raise RoadError(
            "generate takes tokens, generate(input_ids=…), as tokenizer(prompt, "
            "return_tensors='pt') gives them; for texts: answer(tokenizer, prompts)"
        )
    return arguments
