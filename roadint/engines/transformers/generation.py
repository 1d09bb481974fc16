"""What the caller of a generation said, and what that leaves to roadint's defaults."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from roadint.data.prompts import pad_id
from roadint.errors import RoadError, quoted

# What says how long an answer may be; any of them takes the place of a default length.
_LENGTHS = ("max_new_tokens", "max_length", "max_time")


def generation_settings(
    tokenizer: Any, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments for transformers' `generate`: what was given counts, over a generation_config, over the defaults.

    A generation_config is the caller's whole say: the defaults are left out then.
    """
    config = given.get("generation_config")
    chosen: dict[str, Any] = dict(given)
    if config is None:
        said = any(given.get(name) is not None for name in _LENGTHS)
        chosen = {
            **{name: value for name, value in defaults.items() if not (said and name in _LENGTHS)},
            **given,
        }
    if getattr(config, "pad_token_id", None) is None:
        chosen.setdefault("pad_token_id", pad_id(tokenizer))
    if given.get("stop_strings") is not None or getattr(config, "stop_strings", None) is not None:
        chosen["tokenizer"] = tokenizer
    return chosen


def check_room(
    settings: dict[str, Any], given: Mapping[str, Any], columns: int, positions: int | None
) -> dict[str, Any]:
    """The settings, with a default length that fits a model of few positions.

    Raises RoadError where a prompt, or a length that was given, has more tokens than the model has positions.
    """
    if positions is None:
        return settings
    room, asked = positions - columns, given.get("max_new_tokens")
    if room < 1 or (isinstance(asked, int) and asked > room):
        told = f"a prompt of {columns} tokens" + (
            "" if room < 1 else f" and max_new_tokens={asked}"
        )
        raise RoadError(
            f"{told} for a model of {positions} positions: expected at most {positions} together"
        )
    length = settings.get("max_new_tokens")
    return (
        {**settings, "max_new_tokens": min(length, room)} if isinstance(length, int) else settings
    )


def check_generation(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Raises RoadError for what runs the model on other tokens than the call's, in between."""
    scale = _setting("guidance_scale", model, settings)
    if scale is not None and scale != 1:
        raise RoadError(
            f"guidance_scale={quoted(scale)} runs the model on other tokens in between, where no position of the prompt holds: "
            "expected 1 or None where something composes"
        )
    if _setting("assistant_early_exit", model, settings) is not None:
        raise RoadError(
            "assistant_early_exit drafts with the lowest layers alone, where edits above them do not act: expected an "
            "assistant_model or prompt_lookup_num_tokens where something composes"
        )


def drafts(model: nn.Module, settings: Mapping[str, Any]) -> bool:
    """Whether the model is given tokens that something else drafted, several in a pass, the first one included."""
    return settings.get("assistant_model") is not None or any(
        _setting(name, model, settings)
        for name in ("prompt_lookup_num_tokens", "use_mtp", "speculation_type")
    )


def _setting(name: str, model: nn.Module, settings: Mapping[str, Any]) -> Any:
    """What the call says, or its generation_config, or else the model's."""
    configs = (settings.get("generation_config"), getattr(model, "generation_config", None))
    told = next((each for each in configs if each is not None), None)
    return settings.get(name, getattr(told, name, None))
