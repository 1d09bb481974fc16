"""Several adapters at once: which share a layout, which commute, and the product of their rotations."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from roadint.adapters.adapter import RoadAdapter
from roadint.errors import RoadError, listing
from roadint.grammar.composition import Composition
from roadint.rotation.rotation import Rotation


def check_products(
    adapters: Mapping[str, RoadAdapter], compositions: Iterable[Composition]
) -> None:
    """Raises RoadError where adapters of linear layers act on one row and do not commute."""
    for composition in set(compositions) if len(adapters) > 1 else ():
        together = [adapters[name] for name, _ in composition.terms if name in adapters]
        for one, other in itertools.combinations(together, 2):
            reason = commute(one, other)
            if reason:
                raise RoadError(
                    f"composition '{composition}' sums {one.name} and {other.name}, but {reason}: expected RoAd1, disjoint blocks "
                    "or other layers; compose them one at a time"
                )


def by_layout(adapters: Iterable[RoadAdapter]) -> list[list[RoadAdapter]]:
    """Those that rotate the same pairs of the same targets together: one product of rotations serves them."""
    found: dict[Any, list[RoadAdapter]] = {}
    for each in adapters:
        found.setdefault(each.place, []).append(each)
    return list(found.values())


def product(
    members: Mapping[str, RoadAdapter],
    terms: Sequence[tuple[str, float]],
    learning: frozenset[str] | None = None,
) -> Rotation:
    """The rotations of all targets, of adapters that commute and have one layout: u, v [blocks]; the identity without terms."""
    found: Rotation | None = None
    for name, strength in terms:
        each = members[name].rotation(strength, learning=learning is None or name in learning)
        found = each if found is None else each @ found
    if found is None:
        like = next(iter(members.values()))
        return Rotation(
            torch.ones(sum(like.layout.blocks), dtype=torch.complex64, device=like.theta.device)
        )
    _check_finite(found, members, terms)
    return found


def _check_finite(
    made: Rotation, members: Mapping[str, RoadAdapter], terms: Sequence[tuple[str, float]]
) -> None:
    """Raises RoadError for values that are not finite; not while training, which should not wait."""
    acting = [members[name] for name, _ in terms]
    if torch.is_grad_enabled() and any(each.training for each in acting):
        return
    if not bool(
        torch.stack([each.isfinite().all() for each in (made.u, made.v) if each is not None]).all()
    ):
        broken = [
            each.name
            for each in acting
            if not bool((each.theta.isfinite() & each.alpha.isfinite()).all())
        ]
        raise RoadError(
            f"the rotations of {listing(broken or [each.name for each in acting])} are not finite: expected numbers, such as those "
            "of a training at a lower rate; compose without them, or load a checkpoint"
        )


def commute(one: RoadAdapter, other: RoadAdapter) -> str | None:
    """Why the order of two adapters that act together would matter; None where it does not."""
    theirs = set(other.layout.paths)
    for path in one.layout.paths:
        if path not in theirs:
            continue
        places = [each.layout.paths.index(path) for each in (one, other)]
        groups = {each.groups[place] for each, place in zip((one, other), places, strict=True)}
        held = [
            None if each.held is None else torch.split(each.held, each.layout.blocks)[place]
            for each, place in zip((one, other), places, strict=True)
        ]
        if len(groups) > 1:
            return f"they pair other dims of {path}"
        apart = held[0] is not None and held[1] is not None and not bool((held[0] * held[1]).any())
        if not apart and (one.variant, other.variant) != ("road_1", "road_1"):
            return f"{one.variant} and {other.variant} share blocks of {path} and do not commute"
    heads = set(one.head_paths) & set(other.head_paths)
    return f"both have a {next(iter(heads))} of their own" if heads else None
