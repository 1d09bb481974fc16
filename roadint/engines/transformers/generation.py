"""Settings of a generation: the caller's, then defaults; and what can't be combined with edits."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from roadint.data.prompts import pad_id
from roadint.errors import RoadError, quoted

# The settings of an answer's length in tokens: either replaces a default length.
_LENGTHS = ("max_new_tokens", "max_length")


def generation_settings(
    tokenizer: PreTrainedTokenizerBase,
    model: nn.Module,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments for transformers' `generate`.

    Args:
        tokenizer: Names the padding token, and reads stop strings.
        model: Its generation_config says what neither the caller nor defaults do.
        settings: The caller's. They have precedence over a generation_config among them, and that
            replaces all defaults.
        defaults: Settings that apply where the caller has none.
    """
    config = settings.get("generation_config")
    chosen: dict[str, Any] = {}
    if config is None:
        says_length = any(settings.get(name) is not None for name in _LENGTHS)
        for name, value in defaults.items():
            if not (says_length and name in _LENGTHS):
                chosen[name] = value
    chosen |= settings
    if getattr(config, "pad_token_id", None) is None:
        chosen.setdefault("pad_token_id", pad_id(tokenizer))
    if setting("stop_strings", model, settings) is not None:
        chosen["tokenizer"] = tokenizer
    return chosen


def check_room(
    settings: dict[str, Any], asked: Mapping[str, Any], columns: int, positions: int | None
) -> dict[str, Any]:
    """The settings, with a default length that fits a model of few positions.

    Args:
        settings: The caller's, with defaults.
        asked: The caller's alone.
        columns: The length of the prompt.
        positions: How many positions the model has a table of; None where it computes them.

    Raises:
        RoadError: where the prompt, or a length that was asked for, is longer than the model.
    """
    if positions is None:
        return settings
    room, length = positions - columns, asked.get("max_new_tokens")
    if room < 1 or (isinstance(length, int) and length > room):
        what = f"a prompt of {columns} tokens"
        if room >= 1:
            what += f" and max_new_tokens={length}"
        raise RoadError(
            f"{what} for a model of {positions} positions: expected at most {positions} together"
        )
    length = settings.get("max_new_tokens")
    return (
        {**settings, "max_new_tokens": min(length, room)} if isinstance(length, int) else settings
    )


def check_generation(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Refuse settings that run the model on other tokens than those of the call.

    Raises:
        RoadError: for guidance_scale, assistant_early_exit and a paged cache.
    """
    scale = setting("guidance_scale", model, settings)
    if scale is not None and scale != 1:
        raise RoadError(
            f"guidance_scale={quoted(scale)} runs the model on other tokens in between, where no "
            "position of the prompt holds: expected 1 or None where something composes"
        )
    if setting("cache_implementation", model, settings) == "paged":
        raise RoadError(
            "cache_implementation='paged' packs all rows into one, where positions of a prompt "
            "can't be told: expected another cache where something composes; vLLM serves many "
            "requests at once (roadint serve)"
        )
    if setting("assistant_early_exit", model, settings) is not None:
        raise RoadError(
            "assistant_early_exit drafts with the lowest layers alone, where edits above them do "
            "not act: expected an assistant_model or prompt_lookup_num_tokens where something "
            "composes"
        )


def drafts(model: nn.Module, settings: Mapping[str, Any]) -> bool:
    """Whether something else drafts tokens for the model, which come in the first pass too."""
    return settings.get("assistant_model") is not None or any(
        setting(name, model, settings)
        for name in ("prompt_lookup_num_tokens", "use_mtp", "speculation_type")
    )


def with_settings(inputs: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` with some settings: in its generation_config, where it has one.

    transformers takes either a generation_config or settings.
    """
    config = inputs.get("generation_config")
    if config is None:
        return {**inputs, **chosen}
    config = copy.deepcopy(config)
    config.update(**chosen)
    return {**inputs, "generation_config": config}


def setting(name: str, model: nn.Module, settings: Mapping[str, Any]) -> Any:
    """A setting of the call, of its generation_config or of the model's: the first that says it."""
    if name in settings:
        return settings[name]
    configs = settings.get("generation_config"), getattr(model, "generation_config", None)
    said = (getattr(config, name, None) for config in configs)
    return next((value for value in said if value is not None), None)
