"""Reading of what a page, a link or a client sends: texts, settings, the visitor."""

import math
import re
from typing import Any

import gradio as gr

from roadint.demo.requests import MAX_NEW_TOKENS, AnswerSettings

MAX_COMPOSITIONS = 32  # of one request
_GRADIOS_OWN_ID = re.compile("[0-9a-f]{32}")


def read_settings(length: Any, temperature: Any, seed: Any) -> AnswerSettings:
    """Read settings of answers; None stands for a default.

    Args:
        length: How many new tokens; a larger number than allowed counts as the largest.
        temperature: 0 is greedy decoding.
        seed: The seed of sampling.

    Returns:
        The settings.

    Raises:
        RoadError: where one of them is not a number, or is out of range.
    """
    is_number = isinstance(length, (int, float)) and not isinstance(length, bool)
    if is_number and MAX_NEW_TOKENS < length < math.inf:
        length = MAX_NEW_TOKENS
    values = {"max_new_tokens": length, "temperature": temperature, "seed": seed}
    return AnswerSettings(**{name: value for name, value in values.items() if value is not None})


def number_of_link(text: str | None, default: float, low: float, high: float) -> float:
    """Read a number of a link.

    Args:
        text: What the link has.
        default: The number where the link has none.
        low: The least value.
        high: The largest value.

    Returns:
        The nearest number that is allowed.
    """
    try:
        number = float(text or default)
    except ValueError:
        return default
    return min(max(number, low), high) if math.isfinite(number) else default


def visitor_of(request: gr.Request | None) -> str | None:
    """The visitor of a request.

    Args:
        request: Gradio's; None in a call from Python.

    Returns:
        The session of the page or client, or else the address; None without a request.
    """
    if request is None:
        return None
    session = str(request.session_hash or "")
    if session and not _GRADIOS_OWN_ID.fullmatch(session):
        return session
    return f"from {getattr(getattr(request, 'client', None), 'host', 'somewhere')}"
