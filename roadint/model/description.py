"""What interventions do, in words: the edited tokens of a prompt, and a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def model_card(
    repo_id: str, base_model: str, names: Sequence[str], specs: Sequence[Mapping[str, Any]]
) -> str:
    """The README of a checkpoint on the hub.

    Args:
        repo_id: The repository.
        base_model: The id of the base model.
        names: What a composition may use.
        specs: The arguments of the interventions and adapters.
    """
    listed = ", ".join(repr(name) for name in (None, *names))
    edits = "\n".join(f"- `{dict(spec)}`" for spec in specs)
    is_hub_id = "/" in base_model and not base_model.startswith(("/", "."))
    header = f"base_model: {base_model}\n" if is_hub_id else ""
    return f"""---
{header}library_name: roadint
tags: [roadint, road, representation-finetuning]
---
# {repo_id}

RoAd rotations (arXiv 2409.00119) of `{base_model}`: {", ".join(f"`{name}`" for name in names)}.

```python
import roadint

model, tokenizer = roadint.load("{base_model}")
road = roadint.RoadModel.from_pretrained(model, "{repo_id}")
print(road.answer(tokenizer, "How can I learn English?", compose=[{listed}]))
```

{edits}
"""
