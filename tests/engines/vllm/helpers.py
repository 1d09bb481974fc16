"""Checkpoints that are written and served without a model, and numbers of them by dense matrices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roadint import RoadIntervention
from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import Layout
from roadint.checkpoint.writing import save
from roadint.engines.vllm.plan import Plan
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.served import Base, Served, open_served
from roadint.grammar.position import Position
from roadint.interventions.base import SubspaceIntervention
from tests.helpers import HALVES, LAYERS, WIDTH, randomised

BASE = Base(WIDTH, LAYERS, "llama")


def road(layer: int = 1, seed: int = 1, **arguments: Any) -> RoadIntervention:
    """A trained intervention, as if; halves named a and b by default."""
    if "subspace" not in arguments:
        arguments.setdefault("subspaces", HALVES)
    part = RoadIntervention(layer=layer, embed_dim=WIDTH, **arguments)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        part.theta.normal_(0, 1, generator=generator)
        part.alpha.uniform_(0.7, 1.3, generator=generator)
    return part


def adapter(name: str, widths: dict[str, int], seed: int = 1, **arguments: Any) -> RoadAdapter:
    """A trained adapter, as if, of targets and the widths of their outputs."""
    layout = Layout(tuple(widths), tuple(widths.values()), (WIDTH,) * len(widths))
    return randomised(RoadAdapter(name, layout, **arguments), seed)


def write(
    folder: Path,
    *interventions: SubspaceIntervention,
    adapters: Sequence[RoadAdapter] = (),
    **base: Any,
) -> str:
    """A checkpoint in a folder."""
    base_model = {"id": "tiny", "model_type": "llama", "width": WIDTH, "layers": LAYERS, **base}
    about = {"base_model": base_model, "template": "plain", "training": {}}
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, interventions, about, adapters)
    return str(folder)


def serve(
    folder: Path, *interventions: SubspaceIntervention, adapters: Sequence[RoadAdapter] = ()
) -> Served:
    """A checkpoint that is served."""
    return open_served(write(folder, *interventions, adapters=adapters), BASE)


def registry_of(**served: Served) -> Registry:
    """A registry by labels; `plain` stands for the label "" ."""
    registry = Registry(BASE)
    for label, checkpoint in served.items():
        registry.load("" if label == "plain" else label, checkpoint)
    return registry


def plan_of(registry: Registry, compose: Any, prompt_length: int = 100) -> Plan:
    """What a composition does."""
    resolved = registry.resolve(compose, prompt_length)
    assert resolved is not None
    return registry.plan(resolved)


def dense_edit(part: Any, strengths: dict[str, float]) -> Tensor:
    """The matrix of an intervention, `I + Q (R − I) Qᵀ`, from θ and α by the equations."""
    scale, angle = torch.ones(WIDTH // 2), torch.zeros(WIDTH // 2)
    assert part.variant == "road_1"
    for name, strength in strengths.items():
        for block in part.partition[name].blocks if name in part.partition else ():
            scale[block] = part.alpha[block].detach() ** strength
            angle[block] = part.theta[block].detach() * strength
    matrix, group = torch.eye(WIDTH, dtype=torch.float64), part.group
    for block in range(WIDTH // 2):
        start, inside = divmod(block, group // 2)
        i = start * group + inside
        j = i + group // 2
        cosine, sine = (float(scale[block] * f(angle[block])) for f in (torch.cos, torch.sin))
        matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = cosine, -sine, sine, cosine
    q = torch.eye(WIDTH, dtype=torch.float64)
    if part.frame is not None:
        q = part.frame.out(torch.eye(WIDTH)).double().T
    return q @ matrix @ q.T


# Plans that are made in memory, at all kinds of positions.

TEXTS = ["last", "last(3)", "first", "first(4)", "all", "at(0)", "at(2)", "at(1, 2)"]
IN_PROMPT = ["at(-1)", "at(0, -2)", "last(70)", "first(70)"]
POSITIONS = [
    *(Position.parse(text, phase) for text in TEXTS for phase in ("prompt", "generated", "both")),
    *(Position.parse(text) for text in IN_PROMPT),
]


def served_at(*positions: Position, fingerprint: str = "f", adapters: Any = ()) -> Served:
    """One subspace n0, n1, … a position; none of them is read from a folder."""
    parts = [
        road(index % 3, index, position=position, subspaces={f"n{index}": "[0, d)"})
        for index, position in enumerate(positions)
    ]
    return Served("memory", fingerprint, None, parts, adapters)


def plan_at(*positions: Position, fingerprint: str = "f", strength: float = 1.0) -> Plan:
    terms = tuple((f"n{index}", strength) for index in range(len(positions)))
    hidden = ((served_at(*positions, fingerprint=fingerprint), terms),) if positions else ()
    return Plan(hidden, ())


def code(plan: Plan, rank: int, prompt_length: int) -> int:
    """Token by token: a bit for each position that selects it."""
    lengths = torch.tensor([prompt_length])
    selects = [position.edited(torch.tensor([[rank]]), lengths) for position in plan.positions]
    return sum(int(selected) << bit for bit, selected in enumerate(selects))
