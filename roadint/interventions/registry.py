"""Every kind of intervention, by the name that recipes and checkpoints give it."""

from roadint.errors import check_known
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.baselines import (
    DireftIntervention,
    LoreftIntervention,
    SteeringIntervention,
)
from roadint.interventions.interchange import RoadInterchange
from roadint.interventions.road import RoadIntervention

KINDS: dict[str, type[SubspaceIntervention]] = {
    each.kind: each
    for each in (
        RoadIntervention,
        RoadInterchange,
        LoreftIntervention,
        DireftIntervention,
        SteeringIntervention,
    )
}


def kind_of(name: str) -> type[SubspaceIntervention]:
    """The class. Raises RoadError for an unknown name."""
    check_known("kind of intervention", name, KINDS)
    return KINDS[name]
