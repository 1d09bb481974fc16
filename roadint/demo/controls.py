"""Checkboxes, toggles and sliders for the subspaces that a page sees."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from roadint.demo.checks import check_number
from roadint.grammar.composition import Composition

CONTROLS = 12  # toggles and sliders; further subspaces go through the expression
MAX_STRENGTH = 2  # of a slider; the least is its negative


def offered(names: Sequence[str]) -> list[str]:
    """The compositions that can be ticked.

    Args:
        names: The subspaces that a page sees.

    Returns:
        The base model, every subspace alone, and all of the first checkpoint's together.
    """
    first = [name for name in names if "@" not in name]
    together = [" + ".join(first)] if len(first) > 1 else []
    return ["none", *first, *together, *(name for name in names if "@" in name)]


def expression_of(names: Sequence[str], values: Sequence[Any]) -> str:
    """The expression of toggles and sliders.

    Args:
        names: The subspaces that the page sees.
        values: The values of toggles, then of sliders.

    Returns:
        The expression.

    Raises:
        RoadError: where the strength of a subspace that is on is not a number, or is out of range.
    """
    controls = zip(names, values[:CONTROLS], values[CONTROLS:], strict=False)
    strengths = {
        name: check_number(f"the strength of {name}", value, -MAX_STRENGTH, MAX_STRENGTH)
        for name, is_on, value in controls
        if is_on
    }
    return str(Composition.parse(strengths, names))


def controls_of(names: Sequence[str], strengths: Mapping[str, float]) -> list[gr.Component]:
    """Toggles and sliders, set to a composition.

    Args:
        names: The subspaces that the page sees.
        strengths: Subspace → strength, for those that act.

    Returns:
        Updates for Gradio: toggles, then sliders; those without a subspace are hidden.
    """
    shown = [*names[:CONTROLS], *[None] * (CONTROLS - len(names))]
    toggles: list[gr.Component] = []
    sliders: list[gr.Component] = []
    for name in shown:
        is_shown, strength = name is not None, strengths.get(name or "", 1.0)
        toggles.append(gr.Checkbox(name in strengths, label=name or "", visible=is_shown))
        value = min(max(strength, -MAX_STRENGTH), MAX_STRENGTH)
        sliders.append(gr.Slider(value=value, label=f"strength of {name}", visible=is_shown))
    return [*toggles, *sliders]
