"""Arithmetic of checkpoints: when interventions of two checkpoints at one site can act together.

A sum has no order, so only what commutes may be summed: rotations of disjoint blocks, of any
variant, and RoAd1 on shared blocks, where a block is a complex number (`α e^{iθ}`), a sum is a
product and a difference a quotient. Each kind says what it commutes with.
"""

import itertools
from collections.abc import Iterable, Sequence

from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.interventions.base import SubspaceIntervention


def check_sums(
    interventions: Sequence[SubspaceIntervention], compositions: Iterable[Composition]
) -> None:
    """Check that no composition sums what does not commute.

    Interventions of one checkpoint (or of none) act in the order in which they are listed.

    Raises:
        RoadError: where the order would change the result.
    """
    several = len({label_of(intervention) for intervention in interventions}) > 1
    pairs = [
        (first, second)
        for first, second in itertools.combinations(interventions if several else (), 2)
        if (first.layer, first.component) == (second.layer, second.component)
        and label_of(first) != label_of(second)
    ]
    for composition in set(compositions) if pairs else ():
        for first, second in pairs:
            _check_pair(first, second, composition)


def _check_pair(
    first: SubspaceIntervention, second: SubspaceIntervention, composition: Composition
) -> None:
    acting = {name for name, _ in composition.terms}
    names, other_names = acting & set(first.partition), acting & set(second.partition)
    if not names or not other_names:
        return
    reason = first.why_order_matters(names, second, other_names)
    # A kind may know of another that knows nothing of it.
    if reason is not None and second.why_order_matters(other_names, first, names) is not None:
        raise RoadError(
            f"composition '{composition}' sums {', '.join(sorted(names))} and "
            f"{', '.join(sorted(other_names))} at layer {first.layer}, but {reason}: "
            "expected the same basis and pairing, and RoAd1 where blocks are shared; "
            "compose them one at a time, or train on disjoint blocks"
        )


def label_of(intervention: SubspaceIntervention) -> str:
    """The name that its checkpoint was loaded as; empty where there is none."""
    return next(iter(intervention.partition)).partition("@")[2]
