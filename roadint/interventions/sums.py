"""Sums across checkpoints: which interventions of two checkpoints may act together at one site.

A sum has no order, so only interventions that commute may be summed: rotations of disjoint blocks,
of any variant, and RoAd1 on shared blocks, where a block is a complex number (`α e^{iθ}`), a sum is
a product and a difference a quotient. A kind knows what it commutes with.
"""

import itertools
from collections.abc import Iterable, Sequence

from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.interventions.base import SubspaceIntervention


def check_sums(
    interventions: Sequence[SubspaceIntervention], compositions: Iterable[Composition]
) -> None:
    """Check that compositions sum only what commutes.

    Interventions of the same checkpoint are not checked: they act in the order of the list.

    Raises:
        RoadError: where the order would change the result.
    """
    is_mixed = len({label_of(intervention) for intervention in interventions}) > 1
    pairs = [
        (first, second)
        for first, second in itertools.combinations(interventions if is_mixed else (), 2)
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
    # One kind may know that it commutes with another, which does not know the first.
    if reason is not None and second.why_order_matters(other_names, first, names) is not None:
        raise RoadError(
            f"composition '{composition}' sums {', '.join(sorted(names))} and "
            f"{', '.join(sorted(other_names))} at layer {first.layer}, but {reason}: "
            "expected the same basis and pairing, and RoAd1 where blocks are shared; "
            "compose them one at a time, or train on disjoint blocks"
        )


def label_of(intervention: SubspaceIntervention) -> str:
    """The label of the intervention's checkpoint; empty where there is none."""
    return next(iter(intervention.partition)).partition("@")[2]
