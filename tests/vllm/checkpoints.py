"""Checkpoints with every kind of edit that can be served, with seeded values as if trained."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from roadint import RoadAdapter, RoadIntervention, RoadModel

PERIODS: list[Any] = ["road_1", "road_2", "road_4"]


def main(model: Any, folder: Path) -> str:
    """Hidden states: every kind of position, phase, basis, variant and pairing."""
    edits = [
        RoadIntervention(layer=2, subspaces={"german": "[0, d/2)", "english": "[d/2, d)"}),
        RoadIntervention(
            layer=9, position="last(2)", variant="road_2", subspaces={"german": "[0, d/4)"}
        ),
        RoadIntervention(
            layer=4,
            position="last(5)",
            variant="road_4",
            basis="hadamard",
            subspaces={"tail": "[0, d/2)"},
        ),
        RoadIntervention(
            layer=6,
            position="first(2)",
            variant="road_2",
            pairing="half",
            basis="random",
            subspaces={"head": "[d/4, d)"},
        ),
        RoadIntervention(layer=8, position="all", phase="both", subspaces={"whole": "[0, d/4)"}),
        RoadIntervention(layer=5, position="at(0, 3, -2)", subspaces={"picked": "[0, d)"}),
        RoadIntervention(
            layer=12,
            phase="generated",
            variant="road_2",
            subspaces={"spoken": "[0, d/2)", "loud": "[d/2, d)"},
        ),
        RoadIntervention(
            layer=10, position="first(3)", phase="both", subspaces={"start": "[0, d)"}
        ),
        RoadIntervention(layer=7, position="last(3)", basis="pca", subspaces={"axes": "[0, 64)"}),
        RoadIntervention(
            layer=14, position="at(1, 2)", phase="generated", subspaces={"second": "[0, d)"}
        ),
    ]
    return save(model, folder, edits, seed=1)


def other(model: Any, folder: Path) -> str:
    """Hidden states at sites that `main` edits too, and under the same names."""
    edits = [
        RoadIntervention(layer=2, subspaces={"german": "[0, d/2)", "french": "[d/2, d)"}),
        RoadIntervention(layer=9, position="last(2)", subspaces={"latin": "[d/4, d)"}),
    ]
    return save(model, folder, edits, seed=2)


def adapters(model: Any, folder: Path) -> str:
    """Adapters on linear layers: every variant, a part of the dims, another pairing, few targets."""
    road = RoadModel(model)
    for variant in PERIODS:
        road.add_adapter(variant, variant=variant)
    road.add_adapter("part", subspace="[0, d/4)")
    road.add_adapter("halves", pairing="half", variant="road_2", targets=["down_proj", "o_proj"])
    road.add_adapter("queries", targets=["q_proj"], layers=[1, 5])
    road.add_adapter("gates", targets=["gate_proj", "v_proj"])
    return save(model, folder, (), road.adapters.values(), seed=3)


def save(
    model: Any,
    folder: Path,
    edits: Iterable[RoadIntervention],
    on_layers: Iterable[RoadAdapter] = (),
    seed: int = 0,
) -> str:
    """Write a checkpoint whose values are drawn by the seed."""
    road = RoadModel(model, list(edits))
    road.attach(list(on_layers))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for edit in road.interventions:
            if edit.unmeasured_axes() is not None:
                edit.fit_basis(torch.randn(64, edit.width, generator=draw))
            edit.theta.normal_(0, 0.25, generator=draw)
            edit.alpha.uniform_(0.9, 1.1, generator=draw)
        for adapter in road.adapters.values():
            adapter.theta.normal_(0, 0.05, generator=draw)
            adapter.alpha.uniform_(0.95, 1.05, generator=draw)
    road.save_pretrained(folder)
    return str(folder)


def late(model: Any, folder: Path, seed: int) -> str:
    """What comes while an engine serves: sites and layers that `main` and `adapters` have."""
    edits = [
        RoadIntervention(layer=2, subspaces={"german": "[0, d/2)", "french": "[d/2, d)"}),
        RoadIntervention(layer=12, phase="generated", subspaces={"said": "[0, d)"}),
        RoadIntervention(layer=8, position="all", phase="both", subspaces={"ever": "[d/2, d)"}),
    ]
    road = RoadModel(model)
    road.add_adapter("tuned")
    return save(model, folder, edits, road.adapters.values(), seed)
