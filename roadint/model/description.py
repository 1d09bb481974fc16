"""What interventions do, in words: the edited tokens of a prompt."""

from collections.abc import Sequence

from roadint.interventions.base import SubspaceIntervention


def describe(interventions: Sequence[SubspaceIntervention], tokens: Sequence[str]) -> str:
    """What interventions do, a line each, and the prompt with its edited tokens marked.

    Args:
        interventions: Those of a model.
        tokens: The texts of the prompt's tokens.

    Returns:
        The text. An edited token stands in »…«, followed by the layers that edit it.

    Raises:
        RoadError: where a position is outside the prompt.
    """
    lines = []
    layers_of: dict[int, list[int]] = {}
    for intervention in interventions:
        lines.append(_line(intervention))
        for index in intervention.position.indices(len(tokens)):
            layers_of.setdefault(index, []).append(intervention.layer)
    shown = []
    for index, token in enumerate(tokens):
        text = token.replace("\n", "⏎")
        layers = ", ".join(str(layer) for layer in layers_of.get(index, ()))
        shown.append(f"»{text}«[layer {layers}]" if layers else text)
    lines.append(f"prompt, {len(tokens)} tokens, {len(layers_of)} edited: " + "|".join(shown))
    return "\n".join(lines)


def _line(intervention: SubspaceIntervention) -> str:
    position = intervention.position
    site = f"layer {intervention.layer} {intervention.component}"
    parts = ", ".join(f"{name} {subspace}" for name, subspace in intervention.partition.items())
    count = f"{intervention.trainable_count} numbers in {parts}"
    return f"{site}, position {position}, {position.phase}: {intervention.short_name}, {count}"
