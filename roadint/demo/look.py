"""Look inside one composition: edited tokens, the next token, the logit lens, the blocks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from roadint.data.prompts import batch_prompts
from roadint.demo.service import Service
from roadint.grammar.composition import Composition
from roadint.inspection.angles import intervention_values, turns_blocks
from roadint.inspection.lens import logit_lens, next_tokens
from roadint.interventions.base import SubspaceIntervention


def inside(service: Service, prompt: str, text: str, labels: Sequence[str]) -> dict[str, Any]:
    """What a composition does to a prompt, beside the base model, as plain values.

    Args:
        service: The model and its checkpoints.
        prompt: An instruction.
        text: The composition.
        labels: The checkpoints that it may name.

    Returns:
        "composition"; "tokens": {"text", "layers"}, the layers that edit one; "kl" in nats;
        "moved": {"text", "before", "after"}; "lens": {"first", "rows"}, the likeliest tokens and
        their probabilities after each layer from the first one; "sites": {"title", "count", "raw"
        (whether blocks are pairs of neighbouring dimensions), "parts"}, angles in radians and
        scales, as the composition's strengths make them.

    Raises:
        RoadError: for bad input.
    """
    batcher = service.batcher
    road, tokenizer = batcher.road, batcher.tokenizer
    composition = service.parse(text, labels)
    batcher.check(prompt)
    with service.using([composition]):
        batcher.check(prompt, [composition])
        with batcher.lock:
            acting = _acting(road.interventions, composition)
            ids = batch_prompts(tokenizer, road.template, [prompt])["input_ids"][0].tolist()
            (moved,) = next_tokens(road, tokenizer, prompt, [composition])
            lens = logit_lens(road, tokenizer, prompt, [None, composition])
        strengths = dict(composition.terms)
        sites = [_site(edit, strengths) for edit in acting if turns_blocks(edit)]
    first = min((edit.layer for edit in acting), default=0)
    names = ("base model", str(composition))
    return {
        "composition": str(composition),
        "tokens": _tokens(tokenizer, ids, acting),
        "kl": moved.kl,
        "moved": [token._asdict() for token in moved.moved],
        "lens": {
            "first": first,
            "rows": [
                {"name": name, "tokens": row[first:]} for name, row in zip(names, lens, strict=True)
            ],
        },
        "sites": sites,
    }


def _acting(
    interventions: Iterable[SubspaceIntervention], composition: Composition
) -> list[SubspaceIntervention]:
    """The interventions with a subspace that the composition names."""
    named = {name for name, strength in composition.terms if strength}
    return [edit for edit in interventions if named & set(edit.partition)]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], acting: Sequence[SubspaceIntervention]
) -> list[dict[str, Any]]:
    layers: list[list[int]] = [[] for _ in ids]
    for edit in acting:
        for index in edit.position.indices(len(ids)):
            layers[index].append(edit.layer)
    texts = [str(tokenizer.decode([token])) for token in ids]
    return [{"text": text, "layers": edited} for text, edited in zip(texts, layers, strict=True)]


def _site(edit: SubspaceIntervention, strengths: Mapping[str, float]) -> dict[str, Any]:
    """The blocks that act at one place, as the composition's strengths make them."""
    parts, values = [], intervention_values(edit, strengths)
    for name, subspace in values["subspaces"].items():
        strength = strengths.get(name, 0.0)
        if strength:
            parts.append(
                {
                    "name": name,
                    "label": name if strength == 1 else f"{strength:g}*{name}",
                    "blocks": subspace["blocks"],
                    "angles": subspace["angles"],
                    "scales": subspace["scales"],
                }
            )
    title = f"Layer {edit.layer}, {edit.component.replace('_', ' ')}, {edit.position}"
    raw = values.get("basis", "identity") == "identity" and values.get("pairing") == "adjacent"
    return {"title": title, "count": edit.width // 2, "raw": raw, "parts": parts}
