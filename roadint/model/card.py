"""The model card of a checkpoint on the hub: what it is, how to use it, what it was trained on."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

PICTURE = "angles.png"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(
    repo_id: str,
    config: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    *,
    pictured: bool = False,
) -> str:
    """The README of a checkpoint on the hub.

    Args:
        repo_id: The repository.
        config: The checkpoint's JSON file.
        report: What `roadint eval --out` writes, or `dataclasses.asdict` of an Evaluation.
        pictured: Whether the repository has `PICTURE`, a picture of the blocks.

    Returns:
        Markdown with a header that the hub reads.
    """
    base = str(config["base_model"]["id"])
    edits, adapters = config["interventions"], config.get("adapters", ())
    names = list(dict.fromkeys(name for edit in edits for name in edit["subspaces"]))
    names += [adapter["name"] for adapter in adapters]
    is_hub_id = bool(_HUB_ID.fullmatch(base)) and not os.path.isdir(base)
    header = f"base_model: {base}\n" if is_hub_id else ""
    compose = ", ".join(repr(name) for name in (None, *names, *(["all"] * (len(names) > 1))))
    parts = [
        f"---\n{header}library_name: roadint\n"
        "tags: [roadint, road, representation-finetuning]\n---",
        f"# {repo_id}",
        f"RoAd rotations ([arXiv 2409.00119](https://arxiv.org/abs/2409.00119)) of `{base}`: "
        f"{', '.join(f'`{name}`' for name in names)}. One batch answers through any mixture.",
        "```python\nimport roadint\n\n"
        f'model, tokenizer = roadint.load("{base}")\n'
        f'road = roadint.RoadModel.from_pretrained(model, "{repo_id}")\n'
        f'road.answer(tokenizer, "How can I learn English?", compose=[{compose}])\n```',
        "## What is edited",
        "\n".join([*map(_edit, edits), *map(_adapter, adapters)]),
        *(["![Angle and scale of every block](" + PICTURE + ")"] if pictured else []),
        *_training(config["training"]),
        *(_measured(report) if report else []),
        "## Licence",
        f"The terms of the base model `{base}` and those of the data apply.",
    ]
    return "\n\n".join(parts) + "\n"


def _edit(spec: Mapping[str, Any]) -> str:
    parts = ", ".join(f"`{name}` {subspace}" for name, subspace in spec["subspaces"].items())
    basis = f", basis {spec['basis']}" if spec.get("basis", "identity") != "identity" else ""
    kind = spec.get("variant") or spec.get("kind", "road")
    where = f"layer {spec['layer']}, {spec['component']}, position {spec['position']}"
    return f"- {where} ({spec['phase']}): {kind}{basis}; {parts}"


def _adapter(spec: Mapping[str, Any]) -> str:
    lora = f", LoRA of rank {spec['lora_rank']}" if spec.get("lora_rank") else ""
    return f"- adapter `{spec['name']}`: {spec['variant']} on {len(spec['paths'])} layers{lora}"


def _training(training: Mapping[str, Any]) -> Sequence[str]:
    """A table of the training, where the checkpoint tells of one."""
    recipe = training.get("recipe")
    if not isinstance(recipe, Mapping):
        return []
    optimisation = recipe.get("optimisation", recipe)  # the first checkpoints have no sections
    data = recipe.get("data", {})
    sources = data.get("sources", data) if isinstance(data, Mapping) else {}
    rows = training.get("rows") or {}
    lines = ["| data | source | rows |", "|---|---|---|"]
    lines += [f"| {name} | {source} | {rows.get(name, '')} |" for name, source in sources.items()]
    facts = {
        "trained numbers": training.get("trainable"),
        "steps": training.get("steps"),
        "learning rate": optimisation.get("lr"),
        "epochs": optimisation.get("epochs"),
        "seed": optimisation.get("seed"),
    }
    told = "; ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    return ["## Training", "\n".join(lines), told]


def _measured(report: Mapping[str, Any]) -> Sequence[str]:
    """A table of shares and nats a token, a composition a line."""
    sets = list(next(iter(report["nll"].values()), {}))
    lines = [
        f"| composition | success | on topic | {' | '.join(f'{name}, nats' for name in sets)} |",
        "|---" * (3 + len(sets)) + "|",
    ]
    for composition, nats in report["nll"].items():
        shares = report["shares"][composition]
        cells = [_percent(shares["success"]), _percent(shares["on_topic"])]
        cells += [f"{float(nats[name]):.2f}" for name in sets]  # "nan" in a report
        lines.append(f"| `{composition}` | {' | '.join(cells)} |")
    return [
        "## Measured",
        "\n".join(lines),
        "By `roadint eval`: success is an answer on topic that has what its subspaces ask for; "
        "nats a token are those of references that training has not seen.",
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
