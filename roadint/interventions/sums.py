"""Arithmetic of checkpoints: when interventions of several checkpoints at one site can act together.

A sum has no order, so only what commutes may be summed: rotations of disjoint blocks, of any variant, and RoAd1 on shared blocks,
where a block is a complex number (`α e^{iθ}`), a sum is a product and a difference a quotient.
"""

import itertools
from collections.abc import Iterable, Sequence

from roadint.errors import RoadError
from roadint.grammar.composition import Composition
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.road import RoadIntervention


def check_sums(sites: Sequence[SubspaceIntervention], compositions: Iterable[Composition]) -> None:
    """Raises RoadError where a composition sums what does not commute: the order would change the result.

    Interventions of one checkpoint (or of none) act in the order in which they are listed, which is theirs.
    """
    several = len({label_of(site) for site in sites}) > 1
    pairs = [
        (one, other)
        for one, other in itertools.combinations(sites if several else (), 2)
        if (one.layer, one.component) == (other.layer, other.component)
        and label_of(one) != label_of(other)
    ]
    for composition in set(compositions) if pairs else ():
        acting = {name for name, _ in composition.terms}
        for one, other in pairs:
            first, second = acting & set(one.partition), acting & set(other.partition)
            reason = _order_matters(one, first, other, second) if first and second else None
            if reason:
                raise RoadError(
                    f"composition '{composition}' sums {', '.join(sorted(first))} and {', '.join(sorted(second))} "
                    f"at layer {one.layer}, but {reason}: expected the same basis and pairing, and RoAd1 where blocks are shared; "
                    "compose them one at a time, or train on disjoint blocks"
                )


def _order_matters(
    one: SubspaceIntervention, first: set[str], other: SubspaceIntervention, second: set[str]
) -> str | None:
    """Why the two, with these subspaces, do not commute; None where they do."""
    if not isinstance(one, RoadIntervention) or not isinstance(other, RoadIntervention):
        return f"{one.kind} and {other.kind} edits do not commute"
    if (one.group, one.basis) != (other.group, other.basis) or one.basis.kind == "pca":
        return f"they form pairs in different bases ({one.basis.kind} and {other.basis.kind})"
    shared = {block for name in first for block in one.partition[name].blocks}
    shared &= {block for name in second for block in other.partition[name].blocks}
    plain = all(each.variant == "road_1" and each.form == "rotation" for each in (one, other))
    if shared and not plain:
        return f"{one.variant} and {other.variant} share {len(shared)} blocks and do not commute"
    return None


def label_of(site: SubspaceIntervention) -> str:
    """The name that the site's checkpoint was loaded as; empty where there is none."""
    return next(iter(site.partition)).partition("@")[2]
