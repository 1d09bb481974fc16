"""What an intervention does, in words: the edited tokens of a prompt, and a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from roadint.interventions.base import SubspaceIntervention


def edited_tokens(intervention: SubspaceIntervention, count: int) -> list[bool]:
    """For a prompt of `count` tokens: which of them the intervention edits."""
    indices = set(intervention.position.indices(count))
    return [index in indices for index in range(count)]


def describe(interventions: Sequence[SubspaceIntervention], tokens: Sequence[str]) -> str:
    """Sites, subspaces and the prompt's tokens; an edited token stands in »…« and names its layers."""
    lines = []
    layers_of: dict[int, list[int]] = {}
    for intervention in interventions:
        where = f"layer {intervention.layer} {intervention.component}, position {intervention.position}, {intervention.position.phase}"
        what = getattr(intervention, "variant", intervention.kind)
        parts = ", ".join(f"{name} {subspace}" for name, subspace in intervention.partition.items())
        lines.append(f"{where}: {what}, {intervention.trainable_count} numbers in {parts}")
        for index, edited in enumerate(edited_tokens(intervention, len(tokens))):
            if edited:
                layers_of.setdefault(index, []).append(intervention.layer)
    shown = []
    for index, token in enumerate(tokens):
        text = token.replace("\n", "⏎")
        layers = ", ".join(str(layer) for layer in layers_of.get(index, ()))
        shown.append(f"»{text}«[layer {layers}]" if layers else text)
    lines.append(f"prompt, {len(tokens)} tokens, {len(layers_of)} edited: " + "|".join(shown))
    return "\n".join(lines)


def model_card(
    repo_id: str, base_model: str, names: Sequence[str], specs: Sequence[Mapping[str, Any]]
) -> str:
    """The README of a checkpoint on the hub. specs: of its interventions and adapters."""
    sites = "\n".join(f"- `{dict(spec)}`" for spec in specs)
    header = (
        f"base_model: {base_model}\n"
        if "/" in base_model and not base_model.startswith(("/", "."))
        else ""
    )
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
print(road.answer(tokenizer, "How can I learn English?", compose=[None, {", ".join(repr(name) for name in names)}]))
```

{sites}
"""
