"""Every kind of intervention, by the name that recipes and checkpoints give it."""

from roadint.baselines import DireftIntervention, LoreftIntervention, SteeringIntervention
from roadint.errors import check_known
from roadint.interchange import RoadInterchange
from roadint.intervention import RoadIntervention
from roadint.site import SubspaceIntervention

KINDS: dict[str, type[SubspaceIntervention]] = {
    each.kind: each for each in (RoadIntervention, RoadInterchange, LoreftIntervention, DireftIntervention, SteeringIntervention)
}


def kind_of(name: str) -> type[SubspaceIntervention]:
    """The class. Raises RoadError for an unknown name."""
    check_known("kind of intervention", name, KINDS)
    return KINDS[name]
