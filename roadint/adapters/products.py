"""Adapters that act together: groups of one layout, what commutes, products."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import Layout
from roadint.errors import RoadError, listing
from roadint.grammar.composition import Composition
from roadint.rotation.rotation import Rotation


def check_products(
    adapters: Mapping[str, RoadAdapter], compositions: Iterable[Composition]
) -> None:
    """Refuse sums of adapters whose order would matter.

    Args:
        adapters: The adapters by name.
        compositions: Compositions; other names in them are ignored.

    Raises:
        RoadError: where adapters act on one row and do not commute.
    """
    for composition in set(compositions) if len(adapters) > 1 else ():
        acting = [adapters[name] for name, _ in composition.terms if name in adapters]
        for first, second in itertools.combinations(acting, 2):
            reason = why_not_commuting(first, second)
            if reason:
                raise RoadError(
                    f"composition '{composition}' sums {first.name} and {second.name}, "
                    f"but {reason}: expected RoAd1, disjoint blocks or other layers; "
                    "compose them one at a time"
                )


def by_layout(adapters: Iterable[RoadAdapter]) -> list[list[RoadAdapter]]:
    """Group adapters that rotate the same pairs of the same targets, whose product is one rotation.

    Args:
        adapters: In any order.

    Returns:
        The groups.
    """
    groups: dict[tuple[Layout, tuple[int, ...]], list[RoadAdapter]] = {}
    for adapter in adapters:
        groups.setdefault(adapter.layout_and_groups, []).append(adapter)
    return list(groups.values())


def product(
    members: Mapping[str, RoadAdapter],
    terms: Sequence[tuple[str, float]],
    learning: frozenset[str] | None = None,
) -> Rotation:
    """The product of adapters that commute and have one layout, at all targets.

    Args:
        members: The adapters by name, at least one.
        terms: Names and strengths of the adapters that act.
        learning: The names of the adapters that get gradients; all by default.

    Returns:
        The rotation, whose blocks are those of all targets; the identity without terms.

    Raises:
        RoadError: for values that are not finite, or a strength that makes a scale too large.
    """
    whole: Rotation | None = None
    for name, strength in terms:
        factor = members[name].rotation(strength, learning=learning is None or name in learning)
        whole = factor if whole is None else factor @ whole
    if whole is None:
        any_member = next(iter(members.values()))
        blocks, device = sum(any_member.layout.blocks), any_member.theta.device
        return Rotation(torch.ones(blocks, dtype=torch.complex64, device=device))
    _check_finite(whole, [members[name] for name, _ in terms])
    return whole


def why_not_commuting(first: RoadAdapter, second: RoadAdapter) -> str | None:
    """Why the order of two adapters that act together would matter.

    Args:
        first: An adapter.
        second: Another one.

    Returns:
        The reason, for a message; None where the order does not matter.
    """
    of_first = dict(zip(first.layout.paths, first.groups, strict=True))
    of_second = dict(zip(second.layout.paths, second.groups, strict=True))
    for path in filter(of_second.__contains__, of_first):
        if of_first[path] != of_second[path]:
            return f"they pair other dims of {path}"
        road_1 = (first.variant, second.variant) == ("road_1", "road_1")
        if not road_1 and _share_blocks(first, second, path):
            return f"{first.variant} and {second.variant} share blocks of {path} and do not commute"
    heads = set(first.head_paths) & set(second.head_paths)
    return f"both have a {next(iter(heads))} of their own" if heads else None


def _share_blocks(first: RoadAdapter, second: RoadAdapter, path: str) -> bool:
    if first.held is None or second.held is None:
        return True
    return bool((first.layout.part(first.held, path) * second.layout.part(second.held, path)).any())


def _check_finite(made: Rotation, acting: Sequence[RoadAdapter]) -> None:
    """Refuse values that are not finite; not while training, which should not wait."""
    if torch.is_grad_enabled() and any(adapter.training for adapter in acting):
        return
    numbers = [made.u] if made.v is None else [made.u, made.v]
    if not bool(torch.stack([number.isfinite().all() for number in numbers]).all()):
        broken = [
            adapter.name
            for adapter in acting
            if not bool((adapter.theta.isfinite() & adapter.alpha.isfinite()).all())
        ]
        raise RoadError(
            f"the rotations of {listing(broken or [adapter.name for adapter in acting])} are not "
            "finite: expected numbers, such as those of a training at a lower rate; "
            "compose without them, or load a checkpoint"
        )
