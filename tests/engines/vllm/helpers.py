"""Checkpoints that are written and served without a model, and numbers of them by dense matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roadint import RoadIntervention
from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import Layout
from roadint.checkpoint.writing import save
from roadint.engines.vllm.operations import Armed, ArmedLinear, ArmedSite
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.rows.hidden_rows import HiddenRows
from roadint.engines.vllm.rows.linear_rows import LinearRows
from roadint.engines.vllm.rows.places import Place
from roadint.engines.vllm.rows.plan import Plan
from roadint.engines.vllm.rows.shards import Piece
from roadint.engines.vllm.served import Base, Served, open_served
from roadint.engines.vllm.steps import Limits, Steps
from roadint.grammar.position import Position
from roadint.interventions.base import SubspaceIntervention
from roadint.rotation.rotation import Rotation
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


def dense_rotation(
    theta: Tensor, alpha: Tensor, strengths: Sequence[float], group: int = 2
) -> Tensor:
    """The matrix of equation 3 of the paper, in double precision; one strength a block."""
    blocks = len(theta)
    shape = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[theta[0].numel()]  # of a block: matrix rows, columns
    matrix = torch.eye(2 * blocks, dtype=torch.float64)
    for block, s in enumerate(strengths):
        angle = (theta[block].detach().double() * s).reshape(shape).expand(2, 2)
        scale = (alpha[block].detach().double() ** s).reshape(shape).expand(2, 2)
        cosine, sine = scale * angle.cos(), scale * angle.sin()
        first = block // (group // 2) * group + block % (group // 2)
        pair = torch.tensor([first, first + group // 2])
        made = [[cosine[0, 0], -sine[0, 1]], [sine[1, 0], cosine[1, 1]]]
        matrix[pair[:, None], pair] = torch.tensor(made, dtype=torch.float64)
    return matrix


def dense_edit(part: Any, strengths: Mapping[str, float]) -> Tensor:
    """The matrix of an intervention, `I + Q (R − I) Qᵀ`, in double precision."""
    of_block = [0.0] * (WIDTH // 2)
    for name in strengths.keys() & set(part.partition):
        for block in part.partition[name].blocks:
            of_block[block] = strengths[name]
    r = dense_rotation(part.theta, part.alpha, of_block, part.group)
    eye = torch.eye(WIDTH, dtype=torch.float64)
    q = eye if part.frame is None else part.frame.out(torch.eye(WIDTH)).double().T
    return eye + q @ (r - eye) @ q.T


def dense_target(one: RoadAdapter, path: str, strength: float) -> Tensor:
    """The matrix of an adapter at a target, in double precision."""
    theta, alpha = one.of(path)
    held = torch.ones(len(theta)) if one.held is None else one.layout.part(one.held, path)
    group = one.groups[one.layout.paths.index(path)]
    return dense_rotation(theta, alpha, (strength * held).tolist(), group)


def dense_turn(row: Rotation, place: Place) -> Tensor:
    """The matrix of a row of a table at a place: `u·z + v·z̄` of pairs z, in double precision."""
    u = row.u[place.blocks].to(torch.complex128)
    v = torch.zeros_like(u) if row.v is None else row.v[place.blocks].to(torch.complex128)
    matrix, half = torch.zeros(place.width, place.width, dtype=torch.float64), place.group // 2
    for block in range(place.width // 2):
        first = block // half * place.group + block % half
        for column, unit in ((first, 1), (first + half, 1j)):
            turned = u[block] * unit + v[block] * complex(unit).conjugate()
            matrix[first, column], matrix[first + half, column] = turned.real, turned.imag
    return matrix


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


# An engine's process, without an engine.


def steps_of(
    registry: Registry,
    pieces: Mapping[str, list[Piece]] | None = None,
    requests: int = 4,
    tokens: int = 64,
) -> Steps:
    """The books of a process that serves a registry's checkpoints."""
    served = list(registry.served.values())
    widths: dict[str, int] = {}
    for listed in (pieces or {}).values():
        for piece in listed:
            widths[piece.module] = max(widths.get(piece.module, 0), piece.offset + piece.width)
    linear = LinearRows(served, pieces or {}, widths, reserve=False)
    hidden = HiddenRows(served, (), WIDTH)
    return Steps(registry, hidden, linear, Limits(requests, tokens), torch.device("cpu"))


def armed_of(steps: Steps) -> Armed:
    """What a model's layers read, in the order of the sites and modules."""
    armed = Armed(steps.hidden_table, steps.linear_table)
    for site in steps.hidden.sites:
        armed.sites.append(ArmedSite(str(site), steps.hidden.at(site)))
    for module in steps.linear.modules:
        armed.linears.append(ArmedLinear(module, steps.linear.at(module)))
    return armed
